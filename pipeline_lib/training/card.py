"""The model card of a demo model, written from its measured metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.training.recipes import (
    ContrastiveRecipe,
    Recipe,
    SelfDistillationRecipe,
    SupervisedRecipe,
)
from pipeline_lib.training.save import CARD, METRICS
from pipeline_lib.world.factors import TASK_FACTORS

CARD_TEXT = """# {name}

{summary}

A small model of the demo world of this repository (`docs/demo-world.md`), trained on rendered
pictures alone. It knows nothing of photographs: it is there to try the pipeline and to check it
against known factors.

## Load it

```python
{loading}
```

Input: {side}×{side} RGB. Weights are stored in float16.

## Data

{images} images of the demo world (seed {train_seed}), rendered by `pipeline_lib.world`; no picture
comes from outside.

## Training

{training}

| | |
|---|---|
| steps × batch | {steps} × {batch} |
| optimiser | Muon for the matrices of the blocks, AdamW for the rest; peak learning rate \
{learning_rate}, weight decay {weight_decay}, one cycle |
| seed | {seed} |
| wall time of the training | {minutes:.1f} min |
| device | {device} |
| date | {date} |
| command | `snakemake resources/models/{name}/metrics.json` |

## Measured

{measure} on {evaluation_images} held-out images (seed {evaluation_seed}), with the weights of this
folder loaded by the library's own code:

{table}
{remark}
The numbers are those of `metrics.json`.
"""

TIMM_LOADING = """import timm

model = timm.create_model("local-dir:resources/models/{name}", pretrained=True)"""

CLIP_LOADING = """import open_clip

name = "local-dir:resources/models/{name}"
model, _, preprocess = open_clip.create_model_and_transforms(name)
tokenizer = open_clip.get_tokenizer(
    name, bpe_path="resources/models/{name}/bpe_simple_vocab.txt.gz"
)"""


def write_card(folder: Path, recipe: Recipe, metrics: Mapping[str, Any]) -> None:
    """Write the card `README.md` of a model folder from the content of its `metrics.json`."""
    text = CARD_TEXT.format(
        **{name: metrics["recipe"][name] for name in _RECIPE_FIELDS},
        name=recipe.name,
        summary=_summary(recipe),
        loading=_loading(recipe).format(name=recipe.name),
        side=96,
        train_seed=metrics["train_seed"],
        training=_training(recipe),
        minutes=metrics["seconds"] / 60,
        device=metrics["device"],
        date=metrics["date"],
        measure=metrics["measure"][0].upper() + metrics["measure"][1:],
        evaluation_images=metrics["evaluation_images"],
        evaluation_seed=metrics["evaluation_seed"],
        table=accuracy_table(metrics["accuracy"]),
        remark=_remark(recipe, metrics["accuracy"]),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


_RECIPE_FIELDS = ("images", "steps", "batch", "learning_rate", "weight_decay", "seed")


def accuracy_table(accuracy: Mapping[str, float]) -> str:
    """Two-column table of accuracies in percent."""
    rows = [f"| {name} | {100 * value:.1f} % |" for name, value in accuracy.items()]
    return "\n".join(["| factor | accuracy |", "|---|---:|", *rows])


def overview_table(models: Path) -> str:
    """Table of what all models in a folder reached, from their `metrics.json`."""
    head = "| model | measure | shape | colour | texture | scene | mean | images seen | minutes |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for path in sorted(models.glob(f"*/{METRICS}")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        shown = [metrics["accuracy"][name] for name in (*TASK_FACTORS, "mean")]
        seen = metrics["recipe"]["steps"] * metrics["recipe"]["batch"]
        cells = [f"`{metrics['name']}`", metrics["measure"]]
        cells += [f"{100 * value:.1f} %" for value in shown]
        cells += [f"{seen:,}", f"{metrics['seconds'] / 60:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bars_of(recipe: Recipe) -> dict[str, float]:
    """The accuracy that a model of this kind is meant to reach."""
    if isinstance(recipe, ContrastiveRecipe):
        return {"shape": 0.9, "colour": 0.9, "texture": 0.8, "scene": 0.8}
    if isinstance(recipe, SelfDistillationRecipe):
        return {"shape": 0.85}
    return {"mean": 0.95}


def _remark(recipe: Recipe, accuracy: Mapping[str, float]) -> str:
    parts = []
    for name, bar in bars_of(recipe).items():
        verdict = "reached" if accuracy[name] >= bar else "missed"
        parts.append(f"{name} ≥ {100 * bar:.0f} %: {verdict}")
    mean = "`mean` is that of shape, colour, texture and scene."
    return f"\n{mean} Aimed at: {'; '.join(parts)}.\n"


def _summary(recipe: Recipe) -> str:
    if isinstance(recipe, ContrastiveRecipe):
        return "A CLIP (open_clip) with an own small vocabulary."
    if isinstance(recipe, SelfDistillationRecipe):
        return f"A `{recipe.architecture}` (timm), shrunk, without a classifier."
    if isinstance(recipe, SupervisedRecipe):
        return f"A `{recipe.architecture}` (timm), shrunk, with one group of logits per factor."
    raise TypeError(f"no card for a {type(recipe).__name__}")


def _start(recipe: ContrastiveRecipe) -> str:
    if recipe.start:
        return (
            f"The image tower starts from the weights of\nthe supervised model `{recipe.start}`"
            " (as in locked-image tuning, but trained on)."
        )
    return "The patch embedding starts from the principal\ncomponents of patches."


def _distilled_start(recipe: SelfDistillationRecipe) -> str:
    if not recipe.start:
        return "The weights start at random, the patch embedding from the principal components.\n"
    return (
        f"It starts from the supervised model `{recipe.start}`, so what it knows is\n"
        "not all found without labels: from random weights, the few hundred steps that a CPU\n"
        "allows left shape near chance (`docs/demo-world.md`).\n"
    )


def _loading(recipe: Recipe) -> str:
    return CLIP_LOADING if isinstance(recipe, ContrastiveRecipe) else TIMM_LOADING


def _training(recipe: Recipe) -> str:
    if isinstance(recipe, ContrastiveRecipe):
        return (
            "Symmetric InfoNCE between pictures and captions, learned temperature; captions in\n"
            "many wordings. Pictures of a batch come in groups that share scene and colour; they\n"
            f"are moved by some pixels and relit. {_start(recipe)}"
        )
    if isinstance(recipe, SelfDistillationRecipe):
        extra = (
            "As in DINOv2, a share of the patches is hidden from the student, which has to\n"
            "predict the teacher's prototypes there, and the representations are spread (KoLeo).\n"
            if recipe.masked_patches
            else ""
        )
        return (
            "Self-distillation (DINO): two large crops and some small ones, teacher an\n"
            "exponential average of the student, its prototypes balanced by Sinkhorn-Knopp.\n"
            "Unlike in DINO the crops come from two pictures that show the same shape, colour,\n"
            "texture and scene, as from two frames of a film, and the pictures of a batch come\n"
            "in groups that share scene and colour. No class is named to the model, but which\n"
            "pictures show the same thing is known.\n"
            f"{extra}{_distilled_start(recipe)}"
            "The weights are the teacher's."
        )
    return (
        "Cross-entropy within the logits of each factor (shape, colour, texture, scene). Pictures\n"
        "are moved by some pixels, mirrored and relit."
    )
