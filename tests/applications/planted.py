"""A dump in memory whose truth is planted: which component carries which property is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline_lib.factors import Factors

SHAPES = ("circle", "square", "star")
COLOURS = ("red", "green", "blue", "white")
SCENES = ("water", "land")
WIDTH = 24


@dataclass
class ArrayDump:
    """Stand-in for an opened dump: everything in arrays."""

    values: np.ndarray
    components: pd.DataFrame
    manifest: pd.DataFrame
    largest_batch: int = 0

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def factors(self) -> Factors:
        return Factors.whole(*self.values.shape[1:])

    def coordinates(self, index: np.ndarray) -> np.ndarray:
        self.largest_batch = max(self.largest_batch, len(index))
        return self.values[np.asarray(index)].reshape(len(index), -1)

    def contributions(
        self, index: np.ndarray, components: Sequence[int] | None = None
    ) -> np.ndarray:
        rows = self.values[np.asarray(index)]
        return rows if components is None else rows[:, list(components)]

    def batches(self, size: int) -> list[np.ndarray]:
        return [np.arange(start, min(start + size, self.n)) for start in range(0, self.n, size)]

    def representation(self, index: np.ndarray) -> np.ndarray:
        return self.values[np.asarray(index)].sum(axis=1)


def component_table(blocks: int = 3, heads: int = 2) -> pd.DataFrame:
    """Components of a small plain ViT: stem, per block heads and an MLP, bias."""
    rows = [("stem", "stem", -1, -1, -1)]
    for block in range(blocks):
        rows += [
            (f"blocks.{block}.attn/head{head}", "head", 2 * block, block, head)
            for head in range(heads)
        ]
        rows += [(f"blocks.{block}.mlp", "mlp", 2 * block + 1, block, -1)]
    rows += [("bias", "bias", -1, -1, -1)]
    table = pd.DataFrame(rows, columns=["id", "kind", "layer", "block", "head"])
    table.insert(0, "component", range(len(table)))
    return table


def value_directions() -> dict[str, np.ndarray]:
    """One orthonormal direction in the model's space for each value of each property."""
    names = (*SHAPES, *COLOURS, *SCENES)
    basis = np.linalg.qr(np.random.default_rng(5).normal(size=(WIDTH, WIDTH)))[0]
    return dict(zip(names, basis[:, : len(names)].T.astype(np.float32), strict=True))


def planted_dump(
    n: int = 240,
    *,
    carriers: dict[str, str] | None = None,
    noise: float = 0.05,
    biased: float | None = None,
    seed: int = 3,
) -> ArrayDump:
    """Dump in which named components carry one property each and all others only noise.

    Parameters
    ----------
    carriers
        Property to the id of the component that carries it.
    biased
        Share of the train images whose scene follows their label; None for independence.
    """
    rng = np.random.default_rng(seed)
    components = component_table()
    carriers = carriers or {
        "shape": "blocks.2.attn/head1",
        "colour": "blocks.1.attn/head0",
        "scene": "blocks.0.attn/head1",
    }
    manifest = pd.DataFrame(
        {
            "image_id": [f"images/{i:05d}.png" for i in range(n)],
            "path": [f"images/{i:05d}.png" for i in range(n)],
            "split": np.where(
                np.arange(n) % 4 == 3, "val", np.where(np.arange(n) % 4, "train", "test")
            ),
            "shape": rng.choice(SHAPES, n),
            "colour": rng.choice(COLOURS, n),
            "scene": rng.choice(SCENES, n),
        }
    )
    manifest["label"] = np.where(manifest["shape"] == "circle", "round", "edged")
    if biased is not None:
        follows = np.where(manifest["label"] == "round", SCENES[0], SCENES[1])
        chosen = (manifest["split"] == "train") & (rng.random(n) < biased)
        manifest["scene"] = np.where(chosen, follows, manifest["scene"])
    manifest["group"] = manifest["label"] + "/" + manifest["scene"]
    values = noise * rng.normal(size=(n, len(components), WIDTH)).astype(np.float32)
    directions = value_directions()
    for name, carrier in carriers.items():
        column = int(components.index[components["id"] == carrier][0])
        values[:, column] += np.stack([directions[value] for value in manifest[name]])
    values[:, 0] += 2.0  # constant parts, as real stems and biases have
    values[:, -1] = np.linspace(-1.0, 1.0, WIDTH, dtype=np.float32)
    return ArrayDump(values.astype(np.float32), components, manifest)


def planted_scores(components: pd.DataFrame, carriers: dict[str, str]) -> pd.DataFrame:
    """Table `scores` in which the carrier of a property has score 0.9."""
    rows = []
    for feature, carrier in carriers.items():
        part = components[["component", "id", "kind", "layer", "block", "head"]].copy()
        part["feature"] = feature
        rest = 0.1 / (len(part) - 1)
        part["score"] = np.where(part["id"] == carrier, 0.9, rest)
        rows.append(part)
    return pd.concat(rows, ignore_index=True)
