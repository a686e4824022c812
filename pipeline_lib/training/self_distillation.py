"""Self-distillation: DINO, and the additions of DINOv2.

The student sees two large and some small crops, the teacher (a moving average of the student) the
two large ones; the student learns to give every crop the prototypes that the teacher gives to the
other large crop. The teacher's prototypes are balanced within a batch by Sinkhorn-Knopp. DINOv2
adds a loss on patches hidden from the student, and one that spreads the representations.

One thing differs from DINO: the crops come from two pictures that show the same shape, colour,
texture and scene, like two frames of a film, and not from one picture. No class is named in this
training, but which pictures show the same thing is known.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from pipeline_lib.training.data import SIDE, Pool, alike_batches, mirrored, normalise
from pipeline_lib.training.optimise import fit, mixed_precision, set_seed
from pipeline_lib.training.recipes import SelfDistillationRecipe
from pipeline_lib.training.supervised import build_timm
from pipeline_lib.training.warm_start import (
    load_weights,
    start_from_relative,
    warm_start_timm,
)
from pipeline_lib.world.factors import FACTORS, TASK_FACTORS

LARGE_SCALE, SMALL_SCALE = (0.7, 1.0), (0.4, 0.8)
MASKED_IMAGES = 0.5


class Projector(nn.Module):
    """Head that turns tokens into scores of prototypes; unit vectors against unit prototypes."""

    def __init__(self, width: int, prototypes: int, hidden: int = 256, bottleneck: int = 64):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) * 0.02)

    def forward(self, tokens: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        unit = nn.functional.normalize(self.mlp(tokens).float(), dim=-1)
        return unit @ nn.functional.normalize(self.prototypes.float(), dim=-1).T


class Learner(nn.Module):
    """A backbone with its projectors and, for hidden patches, the token that replaces them."""

    def __init__(self, backbone: nn.Module, recipe: SelfDistillationRecipe):
        super().__init__()
        width = backbone.num_features
        self.backbone = backbone
        self.head = Projector(width, recipe.prototypes)
        self.patch_head = Projector(width, recipe.prototypes) if recipe.masked_patches else None
        self.mask_token = nn.Parameter(torch.zeros(width)) if recipe.masked_patches else None

    def forward(
        self, images: Float[Tensor, "n 3 h w"], hidden: Bool[Tensor, "n p"] | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n p d"]]:
        """Pooled representation and patch tokens; `hidden` patches are replaced."""
        tokens = self._tokens(images, hidden)
        return self.backbone.forward_head(tokens, pre_logits=True), tokens[:, self._prefix() :]

    def _prefix(self) -> int:
        return self.backbone.num_prefix_tokens

    def _tokens(self, images: Tensor, hidden: Tensor | None) -> Tensor:
        if hidden is None:
            return self.backbone.forward_features(images)
        handle = self.backbone.patch_embed.register_forward_hook(
            lambda module, inputs, output: _hide(output, hidden, self.mask_token)
        )
        try:
            return self.backbone.forward_features(images)
        finally:
            handle.remove()


def _hide(patches: Tensor, hidden: Tensor, token: Tensor) -> Tensor:
    shape = patches.shape
    flat = patches.reshape(shape[0], -1, shape[-1])
    return torch.where(hidden[..., None], token.to(flat.dtype), flat).reshape(shape)


@torch.no_grad()
def balanced_targets(
    scores: Float[Tensor, "n k"], temperature: float, rounds: int = 3
) -> Float[Tensor, "n k"]:
    """Teacher distribution of each row, all prototypes used alike (Sinkhorn-Knopp).

    Parameters
    ----------
    scores
        Cosines with the prototypes.
    temperature
        Small values give sharp distributions.
    rounds
        Normalisations of columns and rows; the rows come last, so each row sums to 1.
    """
    mass = ((scores.double() - scores.max()) / temperature).exp()
    for _ in range(rounds):
        mass = mass / mass.sum(dim=0, keepdim=True).clamp_min(1e-300)
        mass = mass / mass.sum(dim=1, keepdim=True)
    return mass.to(scores.dtype)


def distillation_loss(
    scores: Float[Tensor, "n k"], targets: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy between teacher distribution and student scores."""
    return -(targets * (scores / temperature).log_softmax(dim=-1)).sum(dim=-1).mean()


def koleo_loss(representations: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Minus the mean log distance to the nearest neighbour on the sphere (DINOv2)."""
    unit = nn.functional.normalize(representations.float(), dim=-1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1)
    return -(unit - unit[nearest]).norm(dim=-1).add(1e-6).log().mean()


def train_self_distillation(
    recipe: SelfDistillationRecipe, pool: Pool, models: Path, device: torch.device
) -> tuple[nn.Module, float]:
    """Backbone of the trained teacher, and the seconds it took.

    Parameters
    ----------
    recipe, pool, device
        What to train, on what, and where.
    models
        Holds the folder of the model that this one starts from.
    """
    rng = set_seed(recipe.seed)
    backbone = build_timm(recipe, num_classes=0)
    if recipe.start:
        start_from_relative(backbone, load_weights(models / recipe.start))
    else:
        warm_start_timm(backbone, pool)
    student = Learner(backbone, recipe).to(device).train()
    teacher = copy.deepcopy(student).requires_grad_(False)

    def loss_of(crops: list[Tensor]) -> Tensor:
        return _loss(recipe, student, teacher, crops, rng)

    def after_step(step: int) -> None:
        follow(teacher, student, 1 - (1 - recipe.momentum) * (1 - 0.9 * step / recipe.steps))

    data = _cropped(recipe, pool, rng, device)
    seconds = fit(student, recipe, data, loss_of, after_step)
    return teacher.backbone.eval(), seconds


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every weight of the teacher towards the student's."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


def _loss(
    recipe: SelfDistillationRecipe,
    student: Learner,
    teacher: Learner,
    crops: list[Tensor],
    rng: torch.Generator,
) -> Tensor:
    large, small = torch.cat(crops[:2]), crops[2:]
    with torch.no_grad(), mixed_precision(large.device):
        seen, patches = teacher(large)
        scores = teacher.head(seen).chunk(2)
    targets = [balanced_targets(part, recipe.teacher_temperature) for part in scores]
    hidden = _hidden_patches(recipe, patches.shape[:2], rng, large.device)
    with mixed_precision(large.device):
        pooled, tokens = student(large, hidden)
        scores = list(student.head(pooled).chunk(2))
        if small:
            scores += student.head(student(torch.cat(small))[0]).chunk(len(small))
    losses = [
        distillation_loss(score, target, recipe.student_temperature)
        for i, target in enumerate(targets)
        for j, score in enumerate(scores)
        if i != j
    ]
    loss = torch.stack(losses).mean()
    if hidden is not None:
        with mixed_precision(large.device):
            wanted = teacher.patch_head(patches[hidden])
            given = student.patch_head(tokens[hidden])
        wanted = balanced_targets(wanted, recipe.teacher_temperature)
        loss = loss + distillation_loss(given, wanted, recipe.student_temperature)
    if recipe.koleo:
        loss = loss + recipe.koleo * sum(koleo_loss(part) for part in pooled.chunk(2)) / 2
    return loss


def _hidden_patches(
    recipe: SelfDistillationRecipe,
    shape: torch.Size,
    rng: torch.Generator,
    device: torch.device,
) -> Bool[Tensor, "n p"] | None:
    """Patches hidden from the student: a random share of half of the images."""
    if not recipe.masked_patches:
        return None
    images = torch.rand(shape[0], 1, generator=rng) < MASKED_IMAGES
    hidden = images & (torch.rand(*shape, generator=rng) < recipe.masked_patches)
    return hidden.to(device)


def _cropped(
    recipe: SelfDistillationRecipe, pool: Pool, rng: torch.Generator, device: torch.device
) -> Iterator[list[Tensor]]:
    partner = Partners(pool, recipe.seed)
    steps = alike_batches(
        pool, recipe.batch, recipe.alike, recipe.steps, recipe.seed, ("scene", "colour")
    )
    for numbers in steps:
        pair = [torch.from_numpy(pool.images[part]) for part in (numbers, partner.of(numbers))]
        crops = [crop(images, rng, SIDE, LARGE_SCALE) for images in pair]
        for number in range(recipe.local_crops):
            crops.append(crop(pair[number % 2], rng, recipe.local_side, SMALL_SCALE))
        yield [part.to(device) for part in crops]


class Partners:
    """For each picture of a pool another one that shows the same: all task factors are equal."""

    def __init__(self, pool: Pool, seed: int) -> None:
        columns = [list(FACTORS).index(name) for name in TASK_FACTORS]
        _, self._kinds = np.unique(pool.codes[:, columns], axis=0, return_inverse=True)
        self._order = np.argsort(self._kinds, kind="stable")
        self._counts = np.bincount(self._kinds)
        self._starts = np.cumsum(self._counts) - self._counts
        ranks = np.arange(len(self._order)) - self._starts[self._kinds[self._order]]
        self._place = np.empty_like(self._order)
        self._place[self._order] = ranks
        self._rng = np.random.default_rng([seed, 17])

    def of(self, numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """A random partner of each image; the image itself where it is the only one of its kind."""
        kinds = self._kinds[numbers]
        counts = self._counts[kinds]
        steps = 1 + self._rng.integers(0, np.maximum(counts - 1, 1))
        return self._order[self._starts[kinds] + (self._place[numbers] + steps) % counts]


def crop(
    images: UInt8[Tensor, "n h w 3"],
    rng: torch.Generator,
    side: int,
    scale: tuple[float, float],
) -> Float[Tensor, "n 3 s s"]:
    """A random crop of each image: part of its area, mirrored, recoloured, resized.

    Parameters
    ----------
    images
        Square images.
    side
        Side of the crops in pixels.
    scale
        Least and largest share of the image's area.
    """
    n = len(images)
    low, high = scale
    half = (low + (high - low) * torch.rand(n, generator=rng)).sqrt()
    shift = (2 * torch.rand(n, 2, generator=rng) - 1) * (1 - half)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = half
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta, [n, 3, side, side], align_corners=False)
    pictures = normalise(mirrored(images, rng))
    cropped = nn.functional.grid_sample(
        pictures, grid, padding_mode="reflection", align_corners=False
    )
    return recoloured(cropped, rng)


def recoloured(images: Float[Tensor, "n 3 h w"], rng: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Images with their brightness, contrast and balance of colours changed."""
    n = len(images)
    gain = 1 + 0.3 * (torch.rand(n, 3, 1, 1, generator=rng) - 0.5)
    offset = 0.4 * (torch.rand(n, 1, 1, 1, generator=rng) - 0.5)
    return images * gain + offset
