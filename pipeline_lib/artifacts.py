"""Every artifact the pipeline writes, declared once: name, axes or columns, dtype, meaning.

The declarations are used to write (`write_table`), to check on read (`read_table`), to lay out
stores (`pipeline_lib.store`) and to document (`docs/artifacts.md`). What a stage computes belongs
in the module named like the stage, not here. Free of torch, so that rules may import it.

Axis letters: `n` image, `c` component, `d` model width, `e` width of the CLIP space, `k` text,
`b` vectors of all bases, `r` coordinates of all components.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.errors import ArtifactError
from pipeline_lib.provenance import context

#: Raised by hand when a stage's results change for the same inputs; a rule puts its stage's number
#: into `params`, so that exactly the downstream jobs run again.
STAGE_VERSIONS: dict[str, int] = {
    "world": 1,
    "manifest": 1,
    "features": 1,
    "contributions": 4,
    "maps": 4,
    "scores": 15,
    "validation": 6,
    "comparison": 5,
    "ablation": 4,
    "retrieval": 5,
    "heatmaps": 1,
    "segmentation": 3,
    "spurious": 2,
    "codes": 2,
    "report": 6,
}


#: Columns of table `redraws`, by the table that has the values of the images themselves.
REDRAWN = {
    "scores": ("score", "score_published", "variance_explained"),
    "truth": (
        "decodability", "decodability_in_words", "ablation_loss", "joint_loss", "margin_loss",
        "clip",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column of a table: Arrow type as text, meaning with unit and range."""

    name: str
    type: str
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """A Parquet table. `extra` says whether further columns (a user's own) may follow."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    extra: bool = False


@dataclass(frozen=True)
class Array:
    """One array of a Zarr store; its first axis is `n`, the manifest's row, or it is shared."""

    name: str
    axes: tuple[str, ...]
    dtype: str  # "config": as the configuration asks
    meaning: str
    optional: bool = False  # whether a store may do without it

    @property
    def per_image(self) -> bool:
        """Whether it has a row for every image."""
        return self.axes[0] == "n"


_ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "list<float>": pa.list_(pa.float32()),
    "list<string>": pa.list_(pa.string()),
}


def _interval(name: str, nullable: bool = False) -> tuple[Column, Column]:
    """Columns of the interval of a mean over images."""
    return (
        Column(f"{name}_low", "float64", "lower end of its 95 % interval over images", nullable),
        Column(f"{name}_high", "float64", "upper end", nullable),
    )


def _of_images(name: str, meaning: str) -> tuple[Column, Column, Column]:
    """Columns of a mean over images and its interval, missing where no image is kept."""
    mean = Column(name, "float64", f"{meaning}; not from moments", nullable=True)
    return (mean, *_interval(name, nullable=True))


_TABLES = (
    Table(
        "manifest",
        "The images of a data set: one row per image, in the order of the rows of every store.",
        (
            Column("row", "int64", "row in every store of this data set; never reused"),
            Column("image_id", "string", "stable id: path relative to the data set's folder"),
            Column("path", "string", "path of the file, relative to the data set's folder"),
            Column("active", "bool", "false where the image has left the data set"),
            Column("sha256", "string", "hash of the file's bytes"),
            Column("width", "int64", "pixels"),
            Column("height", "int64", "pixels"),
            Column("shard", "int64", "shard that holds the row: row // shard_size"),
            Column("split", "string", "train, val or test", nullable=True),
            Column("label", "string", "class of the image", nullable=True),
            Column("group", "string", "group for worst-group accuracy", nullable=True),
            Column("mask", "string", "path of the object's mask", nullable=True),
            Column("caption", "string", "text describing the image", nullable=True),
        ),
        extra=True,
    ),
    Table(
        "rejected",
        "Files of a data set that could not be used, with the reason.",
        (
            Column("path", "string", "path relative to the data set's folder"),
            Column("reason", "string", "why the file was rejected"),
        ),
    ),
    Table(
        "shard",
        "The rows of one shard, with what its dump depends on and nothing else.",
        (
            Column("row", "int64", "row in every store of this data set"),
            Column("path", "string", "path of the file, relative to the data set's folder"),
            Column("active", "bool", "false where the image has left the data set"),
            Column("sha256", "string", "hash of the file's bytes"),
        ),
    ),
    Table(
        "shard_splits",
        "The rows of one shard with their splits: what its moments depend on. Where these serve to "
        "fit maps, images held out of the fit have a split of their own.",
        (
            Column("row", "int64", "row in every store of this data set"),
            Column("path", "string", "path of the file, relative to the data set's folder"),
            Column("active", "bool", "false where the image has left the data set"),
            Column("sha256", "string", "hash of the file's bytes"),
            Column("split", "string", "train, val, test or heldout", nullable=True),
        ),
    ),
    Table(
        "text_features",
        "Text embeddings of concepts, pools and class prompts.",
        (
            Column(
                "use", "string", "concept, pool, random, class, word (of an application), caption"
            ),
            Column("feature", "string", "of a concept; category of a pool text; purpose of a word"),
            Column("text", "string", "the text as the user wrote it"),
            Column("embedding", "list<float>", "unit vector in CLIP space [e]"),
        ),
    ),
    Table(
        "components",
        "The components of a model: one row per component, in the order of the axis `c`.",
        (
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "stable name, for example blocks.3.attn/head2"),
            Column("kind", "string", "head, attention, mlp, conv, stem or bias"),
            Column("layer", "int64", "residual branches counted from the input, 0 first; stem -1"),
            Column("stage", "int64", "stage of a hierarchical model, 0 first; -1 where none"),
            Column("block", "int64", "block in the order from the input; -1 for stem and bias"),
            Column("head", "int64", "head within its attention block; -1 where none"),
            Column("module", "string", "path of the module that produced the component"),
            Column("tokens", "int64", "tokens over which the readout pools this component"),
            Column("rank", "int64", "coordinates stored of it; the model width d: stored whole"),
        ),
    ),
    Table(
        "map_metrics",
        "How well each linear map to CLIP space does on held-out images.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set the map was fitted on"),
            Column("method", "string", "one of maps.method, or identity"),
            Column("chosen", "bool", "true for the map that later stages use"),
            Column(
                "split",
                "string",
                "train: fitted on; heldout: strength and last epoch chosen on; test: neither",
            ),
            Column("n", "int64", "images"),
            *_of_images("cosine", "mean cosine to the target, -1 to 1"),
            *_of_images("recall_at_1", "share of images nearest to their own target"),
            *_of_images("recall_at_5", "share of images with their own target in the first 5"),
            Column(
                "explained",
                "float64",
                "share of the targets' variance that is explained, at most 1; filled by "
                "least-squares methods only; from moments it chooses the strength",
                nullable=True,
            ),
            Column("seconds", "float64", "wall time of the fit"),
        ),
    ),
    Table(
        "scores",
        "Component by feature: how much of a feature's variation a component carries.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("feature", "string", "feature, for example colour"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("kind", "string", "kind of the component"),
            Column("layer", "int64", "layer of the component"),
            Column("block", "int64", "block of the component"),
            Column("head", "int64", "head of the component"),
            Column("score", "float64", "trace form: share of the feature's variance; sums to 1"),
            Column("score_published", "float64", "mean Pearson over QR directions, -1 to 1"),
            Column(
                "covariance", "float64", "covariance with the total; sums to the total variance"
            ),
            Column("variance_explained", "float64", "own variance in the subspace / its total"),
            Column(
                "low",
                "float64",
                "lower end of the middle 95 % of score in redraws of the images; not from moments",
                nullable=True,
            ),
            Column("high", "float64", "upper end of it", nullable=True),
            Column("p_value", "float64", "share of random subspaces in which it scores as high"),
            Column(
                "q_value",
                "float64",
                "p_value corrected for the components of the feature (Benjamini-Hochberg)",
            ),
            Column("margin", "float64", "score less the component's best for another feature"),
        ),
    ),
    Table(
        "labels",
        "TextSpan labels: the texts that explain each component, one row per component and rank.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("kind", "string", "kind of the component"),
            Column("layer", "int64", "layer of the component"),
            Column("head", "int64", "head of the component"),
            Column("rank", "int64", "0 for the first text"),
            Column("text", "string", "text"),
            Column("category", "string", "category of the text in its pool"),
            Column("variance", "float64", "share of the component's variance added by this text"),
            Column("cumulative", "float64", "share explained by the texts so far, 0 to 1"),
            Column("cumulative_pca", "float64", "the same for the principal components: the bound"),
            Column("cumulative_random", "float64", "the same for as many random vectors as texts"),
            Column(
                "cumulative_random_texts",
                "float64",
                "the same for as many random texts; missing where the reference is texts alone",
                nullable=True,
            ),
            Column("cumulative_heldout", "float64", "the same on test images", nullable=True),
            Column(
                "strength",
                "float64",
                "component's share of the variance of the model's own representation, unmapped",
            ),
            Column("strength_low", "float64", "lower end of its 95 % interval", nullable=True),
            Column("strength_high", "float64", "upper end of its 95 % interval", nullable=True),
        ),
    ),
    Table(
        "roles",
        "What each component is about: the category that most of its label's variance speaks of.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("kind", "string", "kind of the component"),
            Column("layer", "int64", "layer of the component"),
            Column("head", "int64", "head of the component"),
            Column(
                "role", "string", "category of texts, 'no clear role' or 'texts of one category'"
            ),
            Column("share", "float64", "share of the explained variance in the first category"),
            Column("margin", "float64", "that share less the share of the second category"),
            Column("p_value", "float64", "share of shuffled categories with as large a share"),
            Column(
                "q_value", "float64", "p_value corrected for all components (Benjamini-Hochberg)"
            ),
            Column("texts_in_role", "int64", "texts of the label in the first category"),
            Column("texts", "int64", "texts of the label"),
            Column("entropy", "float64", "of the shares of categories, 0 (one) to 1 (all alike)"),
            Column("effective_rank", "float64", "exponential of the entropy of its variances"),
        ),
    ),
    Table(
        "hierarchy",
        "The representation opened from coarse to fine: each part's share and its texts.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("level", "string", "representation, stage, block, component or tokens"),
            Column("node", "string", "name of the part, unique in its level"),
            Column("parent", "string", "node of the level above; '' for the representation"),
            Column("components", "int64", "components in the part"),
            Column(
                "share", "float64", "of the variance in CLIP space of all parts; children add up"
            ),
            Column("rank", "int64", "0 for the first text"),
            Column("text", "string", "text"),
            Column("category", "string", "category of the text in its pool"),
            Column("variance", "float64", "share of the part's variance added by this text"),
            Column("cumulative", "float64", "share explained by the texts so far, 0 to 1"),
            Column("cumulative_heldout", "float64", "the same on test images", nullable=True),
        ),
    ),
    Table(
        "reconstruction",
        "Accuracy when components are replaced by what their first texts explain of them.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("replaced", "string", "heads or all: kinds of components that are replaced"),
            Column(
                "directions", "string", "texts, random_texts, random (vectors), pca (the bound)"
            ),
            Column("texts", "int64", "texts per component; -1 for the components themselves"),
            Column("reader", "string", "linear (cross-validated), or zero_shot (texts of classes)"),
            Column("feature", "string", "what is told: a known factor, or the label by zero_shot"),
            Column("accuracy", "float64", "0 to 1, on images that the reader was not fitted on"),
            Column("n", "int64", "images evaluated"),
        ),
    ),
    Table(
        "truth",
        "What is known of each component and feature, to hold scores against.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("feature", "string", "feature; a known factor of the images or not"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("kind", "string", "kind of the component"),
            Column("layer", "int64", "layer of the component"),
            Column("block", "int64", "block of the component"),
            Column("head", "int64", "head of the component"),
            Column("decodability", "float64", "R2 of a linear reader of it alone", nullable=True),
            Column("accuracy", "float64", "accuracy of that reader, 0 to 1", nullable=True),
            Column(
                "decodability_in_words",
                "float64",
                "R2 of a reader of its mapped contribution in the directions of the words",
                nullable=True,
            ),
            Column("ablation_loss", "float64", "accuracy lost by mean-ablating it", nullable=True),
            Column("joint_loss", "float64", "the same, others ablated with it", nullable=True),
            Column("margin_loss", "float64", "margin of the true value lost by it", nullable=True),
            Column("clip", "float64", "Spearman with CLIP's ranking of the images", nullable=True),
            Column("clip_shuffled", "list<float>", "the same, ids shuffled", nullable=True),
        ),
    ),
    Table(
        "redraws",
        "Scores and truths of each component and feature in each redraw of the images: one number "
        "a redraw, the same redraws in all columns.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("feature", "string", "feature"),
            Column("component", "int64", "index on the axis c"),
            *(
                Column(name, "list<float>", f"as in table {table}", nullable=table == "truth")
                for table, names in REDRAWN.items()
                for name in names
            ),
        ),
    ),
    Table(
        "validation",
        "How well the ranking of components by a score follows a truth.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("truth", "string", "a truth: a column of table truth"),
            Column("across", "string", "components (of one feature) or features (of a component)"),
            Column("feature", "string", "feature; '' for the mean over features or components"),
            Column("score", "string", "a score: a column of table scores; or random"),
            Column(
                "value",
                "float64",
                "Spearman correlation, -1 to 1; of random and of shuffles the mean over them",
            ),
            Column(
                "low",
                "float64",
                "1.96 standard errors below it, by redrawing images; of random and of shuffles the "
                "lower end of the middle 95 %",
            ),
            Column("high", "float64", "the same above it"),
            Column("percentile", "float64", "place of the top in the truth, 0 to 1", nullable=True),
            Column("top", "string", "id of the highest scored component; '' for means"),
            Column("n", "int64", "images"),
        ),
    ),
    Table(
        "confirmed",
        "Whether the component that a score names first is among the best by both truths.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("feature", "string", "feature that is a known factor of the images"),
            Column("by", "string", "the score: score or score_published"),
            Column("top", "string", "id of the component with the highest score"),
            Column("score", "float64", "its score"),
            Column("decodability_value", "float64", "R2 of a linear reader of it alone"),
            Column("decodability_percentile", "float64", "share of components not above it"),
            Column("decodability_median", "float64", "median over components"),
            Column("decodability_best", "string", "id of the best component"),
            Column("ablation_loss_value", "float64", "accuracy lost by mean-ablating it"),
            Column("ablation_loss_percentile", "float64", "share of components not above it"),
            Column("ablation_loss_median", "float64", "median over components"),
            Column("ablation_loss_best", "string", "id of the component that costs most"),
            Column("joint_loss_value", "float64", "the same, others ablated with it"),
            Column("joint_loss_percentile", "float64", "share of components not above it"),
            Column("joint_loss_median", "float64", "median over components"),
            Column("joint_loss_best", "string", "id of the component that costs most so"),
            Column("decodability_in_words_value", "float64", "R2 of what it says in the words"),
            Column("decodability_in_words_percentile", "float64", "share not above it"),
            Column("decodability_in_words_median", "float64", "median over components"),
            Column("decodability_in_words_best", "string", "id of the best component"),
            *(
                Column(
                    f"{truth}_{end}",
                    "float64",
                    f"1.96 standard errors {word} its value, by redrawing images",
                )
                for truth in (
                    "decodability",
                    "ablation_loss",
                    "joint_loss",
                    "decodability_in_words",
                )
                for end, word in (("low", "below"), ("high", "above"))
            ),
            Column("confirmed", "bool", "top decile of decodability and ablation_loss"),
            Column("confirmed_share", "float64", "redraws of images in which one is, 0 to 1"),
            Column("components", "int64", "components that vary"),
            Column("candidates", "int64", "components in the top decile of both"),
            Column("confirmed_jointly", "bool", "top decile of decodability and joint_loss"),
            Column("confirmed_jointly_share", "float64", "redraws of images in which one is"),
            Column("candidates_jointly", "int64", "components in the top decile of both"),
            Column(
                "confirmed_in_words", "bool", "top decile of decodability_in_words and joint_loss"
            ),
            Column("confirmed_in_words_share", "float64", "redraws of images in which one is"),
            Column("candidates_in_words", "int64", "components in the top decile of both"),
        ),
    ),
    Table(
        "comparison",
        "Where in depth each feature lives in each model, and how concentrated it is.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("feature", "string", "feature"),
            Column("depth", "float64", "mean relative depth of the positive scores, 0 to 1"),
            Column(
                "depth_low",
                "float64",
                "1.96 standard errors below it, by redrawing images; not from moments",
                nullable=True,
            ),
            Column("depth_high", "float64", "the same above it", nullable=True),
            Column("depth_spread", "float64", "standard deviation of the depth of the scores"),
            Column(
                "carriers",
                "int64",
                "fewest components, without the bias, that have 90 % of the positive scores",
            ),
            Column(
                "carriers_low",
                "float64",
                "1.96 standard errors below it, by redrawing images; not from moments",
                nullable=True,
            ),
            Column("carriers_high", "float64", "the same above it", nullable=True),
            Column("carriers_share", "float64", "that number over all components but the bias"),
            Column("components", "int64", "components but the bias"),
            Column("top", "string", "id of the component with the highest score"),
            Column("top_score", "float64", "its score"),
            Column("heads", "float64", "share of the positive scores in heads"),
            Column("mlps", "float64", "share of the positive scores in MLPs"),
        ),
    ),
    Table(
        "counterparts",
        "For each component the one of every model whose mapped contributions to the same images "
        "are most alike.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("other_model", "string", "model compared with; may be the same"),
            Column("other_component", "int64", "component of it"),
            Column("other_id", "string", "name of that component"),
            Column(
                "similarity",
                "float64",
                "linear CKA of mapped contributions (unbiased), at most 1; near 0 by chance",
            ),
        ),
    ),
    Table(
        "similarity",
        "How alike the mapped contributions of every two components of a model are.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("other_component", "int64", "a component behind it on the axis c"),
            Column("other_id", "string", "name of that component"),
            Column(
                "similarity",
                "float64",
                "linear CKA over the same images (unbiased), at most 1; near 0 by chance",
            ),
        ),
    ),
    Table(
        "ablation",
        "Accuracy while components are replaced by their mean.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("classifier", "string", "own, zero_shot or probe"),
            Column(
                "target", "string", "column of the manifest that is predicted, for example label"
            ),
            Column(
                "curve",
                "string",
                "none, single, by_effect, from_input, from_output, random, all_mlp, all_attention, "
                "class_token",
            ),
            Column("step", "int64", "components or layers ablated so far"),
            Column("ablated", "string", "what was ablated in this step"),
            Column("accuracy", "float64", "0 to 1"),
            Column("low", "float64", "lower end of its 95 % interval over images"),
            Column("high", "float64", "upper end of it"),
            Column("n", "int64", "images evaluated"),
        ),
    ),
    Table(
        "retrieval",
        "Precision of retrieval by one property.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("query", "string", "text, image, or phrase (two texts, one of them asked)"),
            Column("feature", "string", "asked property"),
            Column("measured", "string", "property on which precision is measured"),
            Column(
                "method",
                "string",
                "components, published, representation, subspace, random, clip or chance",
            ),
            Column("components", "int64", "number of components used"),
            Column("k", "int64", "images retrieved per query"),
            Column("precision", "float64", "mean precision at k, 0 to 1"),
            Column("low", "float64", "lower end of its 95 % interval over queries"),
            Column("high", "float64", "upper end of it"),
            Column("map", "float64", "mean average precision over all images, 0 to 1"),
            Column("queries", "int64", "number of queries"),
            Column("n", "int64", "images searched"),
        ),
    ),
    Table(
        "retrieval_choices",
        "Ways to search by a property, compared on the images to choose on.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("query", "string", "text or image"),
            Column("feature", "string", "asked property"),
            Column("way", "string", "sum (published) or subspace of the property's texts"),
            Column("by", "string", "score, or margin over other properties"),
            Column("components", "int64", "number of components"),
            Column(
                "precision",
                "float64",
                "mean precision at 10, 0 to 1; null where there was nothing to choose on",
                nullable=True,
            ),
            Column("queries", "int64", "number of queries; 0 where there was nothing to choose on"),
            Column("n", "int64", "images searched"),
            Column("chosen", "bool", "whether the reported rows are made this way"),
        ),
    ),
    Table(
        "retrieval_examples",
        "The first images retrieved for some queries, for the report.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("query", "string", "text or image"),
            Column("feature", "string", "asked property"),
            Column("probe", "string", "text asked, or image_id of the probe"),
            Column("method", "string", "components, representation, random or clip"),
            Column("rank", "int64", "0 for the first"),
            Column("image_id", "string", "image retrieved"),
            Column("score", "float64", "similarity"),
            Column("correct", "bool", "whether it has the asked property", nullable=True),
        ),
    ),
    Table(
        "retrieval_probes",
        "The images of a data set that are like a probe image of one's own, property by property.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("probe", "string", "path of the probe image"),
            Column("feature", "string", "asked property"),
            Column("way", "string", "sum (published) or subspace of the property's texts"),
            Column("components", "int64", "number of components used"),
            Column("rank", "int64", "0 for the first"),
            Column("image_id", "string", "image found"),
            Column("path", "string", "its path, relative to the data set's folder"),
            Column("score", "float64", "similarity"),
            Column("file", "string", "picture of the images found, relative to this table"),
        ),
    ),
    Table(
        "heatmaps",
        "Token heat maps: how the map falls on the object.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("image_id", "string", "image"),
            Column("direction", "string", "text or class the map shows"),
            Column("mass", "float64", "share of the positive map inside the mask", nullable=True),
            Column("area", "float64", "share of the image inside the mask", nullable=True),
            Column("file", "string", "picture of the overlay, relative to this table"),
        ),
    ),
    Table(
        "segmentation",
        "Zero-shot segmentation from token heat maps, pooled over the set.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("protocol", "string", "C (Chefer et al.) or V (Balasubramanian et al.)"),
            Column("method", "string", "decomposition, or a baseline: gradient, centre, uniform …"),
            Column("pixel_accuracy", "float64", "0 to 1"),
            Column("iou_object", "float64", "0 to 1"),
            Column("iou_background", "float64", "0 to 1", nullable=True),
            Column("miou", "float64", "mean of the two", nullable=True),
            Column(
                "map", "float64", "mean over images of the average precision (C: both channels)"
            ),
            Column("n", "int64", "images"),
            Column("low", "float64", "lower end of the 95 % interval of miou (V: iou_object)"),
            Column("high", "float64", "upper end of it"),
        ),
    ),
    Table(
        "segmentation_images",
        "Zero-shot segmentation of each image by itself.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("protocol", "string", "C or V"),
            Column("method", "string", "decomposition, or a baseline"),
            Column("image_id", "string", "image"),
            Column("iou_object", "float64", "0 to 1"),
            Column("iou_background", "float64", "0 to 1"),
            Column("map", "float64", "average precision"),
            Column("mass", "float64", "share of the positive map inside the mask", nullable=True),
            Column("area", "float64", "share of the image inside the mask"),
        ),
    ),
    Table(
        "segmentation_choices",
        "How well each recipe from signed token maps to one map does on the images to choose on.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("protocol", "string", "C or V"),
            Column("recipe", "string", "class, energy_p, peaked_p or white_p, p the power"),
            Column("iou_object", "float64", "0 to 1"),
            Column("miou", "float64", "mean of object and background", nullable=True),
            Column("n", "int64", "images"),
            Column("chosen", "bool", "whether the reported maps are made by it"),
        ),
    ),
    Table(
        "segmentation_examples",
        "Best, median and worst image of the decomposition, for the report.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("place", "string", "best, median or worst"),
            Column("image_id", "string", "image"),
            Column("iou_object", "float64", "0 to 1"),
            Column("file", "string", "picture of the overlay, relative to this table"),
        ),
    ),
    Table(
        "spurious",
        "Accuracy per group before and after mean-ablating the spurious components.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("method", "string", "full, ablated, random, early, group_labels or published"),
            Column("components", "int64", "number of components ablated"),
            Column("draw", "int64", "draw of random components; 0 else"),
            Column("group", "string", "group; or worst, mean, test, train_weighted"),
            Column("accuracy", "float64", "0 to 1"),
            Column("n", "int64", "images"),
            Column("ablated", "list<string>", "ids of the ablated components"),
        ),
    ),
    Table(
        "spurious_summary",
        "Accuracy and gain of each method and group, with intervals over redraws of the images.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column(
                "method", "string", "full, ablated, random (mean), early, group_labels, published"
            ),
            Column("group", "string", "group; or worst, mean, test, train_weighted"),
            Column("components", "float64", "components ablated"),
            Column("accuracy", "float64", "0 to 1, on the images as they are"),
            Column("accuracy_low", "float64", "lower end of its 95 % interval over redraws"),
            Column("accuracy_high", "float64", "upper end of it"),
            Column("gain", "float64", "accuracy less the full model's"),
            Column("gain_low", "float64", "lower end of its 95 % interval over redraws"),
            Column("gain_high", "float64", "upper end of it"),
            Column("seeds", "int64", "redraws of the images"),
        ),
    ),
    Table(
        "spurious_choices",
        "Each number of ablated components on the split of selection.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("components", "int64", "components ablated, the most spurious first"),
            Column("class_accuracy", "float64", "accuracy averaged over classes: chosen by it"),
            Column("worst", "float64", "worst group's accuracy, not used to choose"),
            Column("n", "int64", "images"),
            Column("chosen", "bool", "whether so many are ablated"),
        ),
    ),
    Table(
        "codes",
        "Images as short non-negative lists of texts.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("image_id", "string", "image"),
            Column("rank", "int64", "0 for the text chosen first"),
            Column("text", "string", "text"),
            Column("category", "string", "category of the text in its pool"),
            Column("weight", "float64", "weight of the text's unit vector, above 0"),
            Column("explained", "float64", "share of the squared length explained so far, 0 to 1"),
        ),
    ),
    Table(
        "code_summary",
        "How much of an image its first texts explain: means over the images of table codes.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("texts", "int64", "texts of an image, or fewer where its code ends before"),
            Column("n", "int64", "images"),
            Column("reaching", "float64", "share of the images whose code has so many texts"),
            Column("explained", "float64", "mean share of the squared length explained, 0 to 1"),
            *_interval("explained"),
        ),
    ),
    Table(
        "code_carriers",
        "The components that carry each text of some images' codes.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("image_id", "string", "image"),
            Column("rank", "int64", "of the text in the image's code"),
            Column("text", "string", "text"),
            Column("order", "int64", "0 for the component that carries most"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("share", "float64", "of the image's product with the text; all sum to 1"),
        ),
    ),
    Table(
        "exactness",
        "How closely the components of a dump sum to the representation, and the dump's size.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("n", "int64", "images"),
            Column("components", "int64", "components"),
            Column("width", "int64", "model width d"),
            Column("tolerance", "float64", "relative error above which a dump job fails"),
            Column("median", "float64", "median over images of the relative sum error"),
            Column("worst", "float64", "largest relative sum error of any image"),
            Column("percentiles", "list<float>", "percentiles 0 to 100 of the sum error"),
            Column("bytes", "int64", "bytes of the store on disk"),
            Column("seconds", "float64", "time of decomposing and writing, summed over shards"),
        ),
    ),
    Table(
        "top_images",
        "The images on which a component writes most along its first text, for the report.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("text", "string", "its first text"),
            Column("rank", "int64", "0 for the first"),
            Column("image_id", "string", "image"),
            Column("score", "float64", "standard deviations above the mean over images"),
        ),
    ),
    Table(
        "token_maps",
        "Where in its top images a component takes what it writes along its first text from.",
        (
            Column("model", "string", "model of the run"),
            Column("dataset", "string", "data set"),
            Column("component", "int64", "index on the axis c"),
            Column("id", "string", "name of the component"),
            Column("text", "string", "its first text"),
            Column("rank", "int64", "of the image among the component's top images"),
            Column("image_id", "string", "image"),
            Column("rows", "int64", "of the patch grid"),
            Column("columns", "int64", "of the patch grid"),
            Column("map", "list<float>", "contribution of each patch, row by row; 0 is neutral"),
            Column("left", "float64", "edge of the model's crop, share of the image's width"),
            Column("top", "float64", "edge of it, share of the image's height"),
            Column("right", "float64", "edge of it, share of the image's width"),
            Column("bottom", "float64", "edge of it, share of the image's height"),
        ),
    ),
    Table(
        "summary",
        "Stages of a run with their cost; each job counts as it ran last.",
        (
            Column("stage", "string", "stage"),
            Column("jobs", "int64", "jobs that were timed"),
            Column("seconds", "float64", "wall time, summed over jobs"),
            Column("longest", "float64", "wall time of the longest job in seconds"),
            Column("memory", "float64", "largest resident memory of a job in bytes", nullable=True),
            Column("bytes", "int64", "bytes of the stage's files"),
        ),
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}

#: Arrays of every kind of store, in the order in which a shard's are written.
STORES: dict[str, tuple[Array, ...]] = {
    "features": (
        Array("image_embeddings", ("n", "e"), "float32", "unit vectors of the reference CLIP"),
    ),
    "contributions": (
        Array("logits", ("n", "k"), "float32", "the model's own classifier", optional=True),
        Array("representation", ("n", "d"), "float32", "pooled representation z"),
        Array("error", ("n",), "float32", "norm of z minus the sum of components, over norm of z"),
        Array("rounding", ("n",), "float32", "what storing lost of all contributions, over them"),
        Array("bases", ("b", "d"), "float32", "bases of the components' contributions", True),
        Array("coordinates", ("n", "r"), "config", "contributions in these bases, side by side"),
    ),
}

#: What a file of moments (safetensors) holds of every group of images, as `{group}.{name}`. Where
#: maps are fitted, the `e` targets of an image stand behind its `r` coordinates as further columns.
MOMENTS: tuple[Array, ...] = (
    Array("n", ("1",), "int64", "number of images"),
    Array("mean", ("r",), "float64", "mean of the coordinates of all components"),
    Array("squares", ("r", "r"), "float64", "sum of the products of centred coordinates"),
)


def _schema_problems(table: Table, frame: pd.DataFrame) -> list[str]:
    declared = [column.name for column in table.columns]
    problems = [f"column {name!r} is missing" for name in declared if name not in frame.columns]
    if not table.extra:
        unknown = extra_columns(table.name, frame)
        problems += [f"column {name!r} is not declared" for name in unknown]
    for column in table.columns:
        if column.name in frame.columns and not column.nullable:
            missing = int(frame[column.name].isna().sum())
            if missing:
                problems.append(f"column {column.name!r} has {missing} missing values")
    return problems


def _check(table: Table, frame: pd.DataFrame, where: str) -> None:
    problems = _schema_problems(table, frame)
    if problems:
        listing = "\n  - ".join(problems)
        raise ArtifactError(
            f"{where} is not a valid table of kind {table.name!r}:\n  - {listing}\n"
            "Delete the file and run snakemake again to make it anew."
        )


def write_table(
    name: str, frame: pd.DataFrame, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write `frame` as the declared table `name`; the file appears complete or not at all.

    Parameters
    ----------
    name
        A key of `TABLES`.
    frame
        Rows; declared columns come first in the file, in the declared order.
    path
        Parquet file to write; its folder is made if needed.
    provenance
        JSON-able facts on what made the table, kept in the file's metadata; what is known of
        the job (`provenance.set_context`) stands beside them under `job`.

    Raises
    ------
    ArtifactError
        A column is missing, undeclared or holds missing values, or the file cannot be written.
    """
    table = TABLES[name]
    path = Path(path)
    _check(table, frame, str(path))
    declared = [column.name for column in table.columns]
    fields = [pa.field(column.name, _ARROW[column.type]) for column in table.columns]
    arrow = pa.Table.from_pandas(frame[declared], schema=pa.schema(fields), preserve_index=False)
    for column in extra_columns(name, frame):
        arrow = arrow.append_column(column, pa.array(frame[column], from_pandas=True))
    known = {"job": context()} if context() else {}
    facts = json.dumps({**dict(provenance or {}), **known}, sort_keys=True)
    arrow = arrow.replace_schema_metadata({"vit_atlas.table": name, "vit_atlas.provenance": facts})
    with atomic_path(path) as beside:
        pq.write_table(arrow, beside)


def read_table(name: str, path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Rows of the declared table `name` from a Parquet file, checked against its declaration.

    Raises
    ------
    ArtifactError
        The file is missing, unreadable, or not such a table.
    """
    path = Path(path)
    try:
        frame = pq.read_table(path, columns=columns).to_pandas()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; run snakemake to make it") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read as Parquet ({error}); delete it and run snakemake again"
        ) from error
    if columns is None:
        _check(TABLES[name], frame, str(path))
    return frame


def extra_columns(name: str, frame: pd.DataFrame) -> list[str]:
    """Columns of a table that are not declared: a user's own.

    >>> extra_columns("manifest", pd.DataFrame(columns=["row", "caption", "colour"]))
    ['colour']
    """
    declared = {column.name for column in TABLES[name].columns}
    return [str(column) for column in frame.columns if column not in declared]


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Facts on what made a table, as given to `write_table`."""
    metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata.get(b"vit_atlas.provenance", b"{}"))


class atomic_path:
    """Context manager giving a path beside the final one, renamed to it on success.

    On an error nothing is left under the final name nor beside it.

    >>> with atomic_path("out.json") as beside:     # doctest: +SKIP
    ...     beside.write_text("{}")
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(
                prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent
            )
            os.close(handle)
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be written: {error}") from error
        self.beside = Path(beside)
        return self.beside

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            os.chmod(self.beside, 0o644)
            os.replace(self.beside, self.path)
            return
        self.beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ArtifactError(
                f"{self.path} cannot be written ({error}); nothing was left under that name"
            ) from error
