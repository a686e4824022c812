"""Renders the training and evaluation images of the demo models (rule render_demo_pools)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline_lib.training.data import load_pool
from pipeline_lib.training.recipes import (
    EVALUATION_IMAGES,
    EVALUATION_SEED,
    RECIPES,
    TRAIN_SEED,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", required=True, type=Path, help="folder of rendered images")
    parser.add_argument("--threads", default=1, type=int)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for n in sorted({recipe.images for recipe in RECIPES.values()}):
        load_pool(arguments.pools, n, TRAIN_SEED, arguments.threads)
    load_pool(arguments.pools, EVALUATION_IMAGES, EVALUATION_SEED, arguments.threads)


if __name__ == "__main__":
    main()
