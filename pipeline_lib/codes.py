"""Sparse concept codes: an image's representation as a short non-negative list of texts.

The mapped representation, less its mean over reference images, is approximated by few texts with
weights above zero; for chosen images the components that carry each text are named. The texts are
those of the pool, less their mean: all of them share one large direction that tells nothing apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline_lib.errors import DataError
from pipeline_lib.intervals import mean_interval
from pipeline_lib.mapped import mapped_representation
from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource

#: A further text must explain at least this share of an image's squared length.
LEAST_GAIN = 0.01

#: Rounds of coordinate descent for the weights of the texts chosen so far.
ROUNDS = 60

#: Columns of table `code_carriers`, without model and data set.
CARRIER_COLUMNS = ["image_id", "rank", "text", "order", "component", "id", "share"]

#: Images coded at once.
_CHUNK = 1024


@dataclass(frozen=True)
class Dictionary:
    """Unit vectors of texts without what they share.

    Attributes
    ----------
    texts, categories
        Each text and its category.
    vectors
        Their directions.
    """

    texts: tuple[str, ...]
    categories: tuple[str, ...]
    vectors: Float[Tensor, "k e"]

    @classmethod
    def of(cls, table: pd.DataFrame) -> Dictionary:
        """Dictionary of the rows of table `text_features` that are of the pool.

        Raises
        ------
        DataError
            There are fewer than two.
        """
        pool = table[table["use"] == "pool"].drop_duplicates("text")
        if len(pool) < 2:
            raise DataError("codes need a pool of at least two texts; name one as `text_pool`")
        vectors = torch.from_numpy(np.stack([np.asarray(row) for row in pool["embedding"]])).float()
        centred = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
        return cls(tuple(pool["text"]), tuple(pool["feature"]), centred)


@dataclass(frozen=True)
class Codes:
    """Codes of some images.

    Attributes
    ----------
    chosen
        Numbers of the texts of each image in the order of choice; -1 where no more are needed.
    weights
        Their weights, all above zero; 0 where there is no text.
    explained
        Share of the squared length that the texts so far explain.
    """

    chosen: Int[np.ndarray, "n m"]
    weights: Float[np.ndarray, "n m"]
    explained: Float[np.ndarray, "n m"]


def encode(
    vectors: Float[np.ndarray, "n e"], dictionary: Float[Tensor, "k e"], count: int
) -> Codes:
    """Codes of at most `count` texts for each vector.

    Parameters
    ----------
    vectors
        Vectors to code.
    dictionary
        Unit vectors of the texts.
    count
        Most texts of an image.

    Notes
    -----
    Orthogonal matching pursuit with non-negative weights: the text whose product with what is left
    is largest joins, and all weights are fitted anew. It ends where the next text would explain
    less than `LEAST_GAIN` of the squared length. Products with all texts are taken once; what is
    left of them follows from the products of texts with texts.
    """
    gram = dictionary @ dictionary.T
    parts = [
        _encode(torch.from_numpy(vectors[start : start + _CHUNK]).float(), dictionary, gram, count)
        for start in range(0, len(vectors), _CHUNK)
    ]
    if not parts:
        raise DataError("there is no image to code; choose another split")
    return Codes(*(np.concatenate([part[i].numpy() for part in parts]) for i in range(3)))


def _encode(
    vectors: Float[Tensor, "b e"],
    dictionary: Float[Tensor, "k e"],
    gram: Float[Tensor, "k k"],
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    products = vectors @ dictionary.T
    length = vectors.square().sum(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    rows = torch.arange(len(vectors))
    chosen = torch.full((len(vectors), count), -1)
    weights = torch.zeros(len(vectors), count)
    explained = torch.zeros(len(vectors), count)
    going = torch.ones(len(vectors), dtype=torch.bool)
    left = products.clone()
    for step in range(count):
        best = left.argmax(dim=1)
        trial = chosen.clone()
        trial[:, step] = best
        taken = trial[:, : step + 1].clamp_min(0)
        small = gram[taken[:, :, None], taken[:, None, :]]
        fitted = _non_negative(small, products.gather(1, taken))
        share = _share(fitted, small, products.gather(1, taken), length)
        before = explained[:, step - 1] if step else torch.zeros(len(vectors))
        going = going & (left[rows, best] > 0) & (share - before >= LEAST_GAIN)
        chosen[going, step] = best[going]
        weights[going, : step + 1] = fitted[going]
        explained[:, step] = torch.where(going, share, before)
        used = chosen[:, : step + 1].clamp_min(0)
        left = products - torch.einsum("bm,bmk->bk", weights[:, : step + 1], gram[used])
    return chosen, weights, explained


def _non_negative(
    gram: Float[Tensor, "b m m"], products: Float[Tensor, "b m"]
) -> Float[Tensor, "b m"]:
    """Least squares with weights of zero or more, by cyclic coordinate descent."""
    weights = torch.zeros_like(products)
    for _ in range(ROUNDS):
        for j in range(products.shape[1]):
            others = (gram[:, j] * weights).sum(dim=1) - gram[:, j, j] * weights[:, j]
            weights[:, j] = ((products[:, j] - others) / gram[:, j, j]).clamp_min(0.0)
    return weights


def _share(
    weights: Float[Tensor, "b m"],
    gram: Float[Tensor, "b m m"],
    products: Float[Tensor, "b m"],
    length: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    own = torch.einsum("bi,bij,bj->b", weights, gram, weights)
    return (2 * (weights * products).sum(dim=1) - own) / length


def code_images(
    source: ContributionSource,
    maps: Maps,
    dictionary: Dictionary,
    index: Int[np.ndarray, " n"],
    reference: Int[np.ndarray, " r"],
    *,
    texts: int = 5,
) -> tuple[Codes, pd.DataFrame]:
    """Codes of images, and rows of table `codes` without model and data set.

    Parameters
    ----------
    source
        Dump of the contributions.
    maps
        Maps of the model's components to the texts' space.
    dictionary
        Texts.
    index
        Images to code.
    reference
        Images whose mean is taken off.
    texts
        Most texts of an image.
    """
    usual = mapped_representation(source, reference, maps).mean(axis=0)
    vectors = mapped_representation(source, index, maps) - usual
    codes = encode(vectors, dictionary.vectors, texts)
    image, rank = np.nonzero(codes.chosen >= 0)
    chosen = codes.chosen[image, rank]
    table = pd.DataFrame(
        {
            "image_id": source.manifest["image_id"].to_numpy()[index[image]],
            "rank": rank,
            "text": np.array(dictionary.texts, dtype=object)[chosen],
            "category": np.array(dictionary.categories, dtype=object)[chosen],
            "weight": codes.weights[image, rank].astype(float),
            "explained": codes.explained[image, rank].astype(float),
        }
    )
    return codes, table


def code_summary(codes: Codes) -> pd.DataFrame:
    """Rows of table `code_summary`, without model and data set: one for each number of texts."""
    rows = []
    for place, explained in enumerate(codes.explained.astype(float).T):
        low, high = mean_interval(explained)
        reaching = float((codes.chosen[:, place] >= 0).mean())
        rows.append(
            {"texts": place + 1, "n": len(explained), "reaching": reaching}
            | {"explained": float(explained.mean())}
            | {"explained_low": low, "explained_high": high}
        )
    return pd.DataFrame(rows)


def carriers(
    source: ContributionSource,
    maps: Maps,
    dictionary: Dictionary,
    codes: Codes,
    index: Int[np.ndarray, " n"],
    reference: Int[np.ndarray, " r"],
    shown: Sequence[int],
    *,
    count: int = 3,
) -> pd.DataFrame:
    """The components that carry each text of some images: rows of table `code_carriers`.

    A component's share of a text is its mapped contribution, less its mean over the reference
    images, times the text, over the same sum of all components.

    Parameters
    ----------
    source, maps, dictionary, codes, index, reference
        As for `code_images`, and what it gave.
    shown
        Places in `index` of the images to open.
    count
        Components named for each text.
    """
    means = source.contributions(reference).mean(axis=0)
    ids = source.components["id"].to_numpy()
    names = source.manifest["image_id"].to_numpy()
    rows = []
    for place in shown:
        beside = torch.from_numpy(source.contributions(index[place : place + 1])[0] - means)
        used = codes.chosen[place][codes.chosen[place] >= 0]
        if not len(used):
            continue
        directions = maps.directions(dictionary.vectors[used], len(beside))
        products = torch.einsum("cd,cdk->kc", beside, directions).numpy()
        for rank, (text, parts) in enumerate(zip(used, products, strict=True)):
            for order, component in enumerate(np.argsort(-parts, kind="stable")[:count]):
                rows.append(
                    {
                        "image_id": str(names[index[place]]),
                        "rank": rank,
                        "text": dictionary.texts[int(text)],
                        "order": order,
                        "component": int(component),
                        "id": str(ids[component]),
                        "share": float(parts[component] / parts.sum()),
                    }
                )
    return pd.DataFrame(rows, columns=CARRIER_COLUMNS)
