"""Trains one demo model by its declared recipe (rule train_demo_model)."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import torch

from pipeline_lib.training.recipes import RECIPES, recipe_of
from pipeline_lib.training.train import train_demo_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, choices=sorted(RECIPES))
    parser.add_argument("--folder", required=True, type=Path, help="folder of the model")
    parser.add_argument("--pools", required=True, type=Path, help="folder of rendered images")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--seed", type=int, help="another seed than the recipe's")
    parser.add_argument("--log", type=Path, help="log file, beside the terminal")
    arguments = parser.parse_args()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if arguments.log:
        handlers.append(logging.FileHandler(arguments.log))
    form = "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=handlers)
    torch.set_num_threads(arguments.threads)
    recipe = recipe_of(arguments.name)
    if arguments.seed is not None:
        recipe = dataclasses.replace(recipe, seed=arguments.seed)
    train_demo_model(
        recipe,
        arguments.folder,
        arguments.pools,
        device=arguments.device,
        workers=arguments.threads,
    )


if __name__ == "__main__":
    main()
