"""Self-distillation without labels: DINO, and the additions of DINOv2.

The student sees two large and some small crops of an image, the teacher (a moving average of the
student) the two large ones; the student learns to give every crop the prototypes that the teacher
gives to the other large crop. DINOv2 adds a loss on patches hidden from the student, and one that
spreads the representations over the sphere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from pipeline_lib.training.data import SIDE, Pool, batches, mirrored, normalise
from pipeline_lib.training.optimise import fit, mixed_precision, set_seed
from pipeline_lib.training.recipes import SelfDistillationRecipe
from pipeline_lib.training.supervised import build_timm
from pipeline_lib.training.warm_start import warm_start_timm

LARGE_SCALE, SMALL_SCALE = (0.6, 1.0), (0.3, 0.6)
CENTRE_MOMENTUM = 0.9
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


class Centre:
    """Running mean of the teacher's scores, removed before sharpening."""

    def __init__(self, prototypes: int, device: torch.device) -> None:
        self.value = torch.zeros(prototypes, device=device)

    @torch.no_grad()
    def targets(self, scores: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
        """Teacher distribution of each row; the centre follows the scores."""
        result = ((scores - self.value) / temperature).softmax(dim=-1)
        self.value = CENTRE_MOMENTUM * self.value + (1 - CENTRE_MOMENTUM) * scores.mean(dim=0)
        return result


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
    recipe: SelfDistillationRecipe, pool: Pool, device: torch.device
) -> tuple[nn.Module, float]:
    """Backbone of the trained teacher, and the seconds it took."""
    rng = set_seed(recipe.seed)
    backbone = build_timm(recipe, num_classes=0)
    warm_start_timm(backbone, pool)
    student = Learner(backbone, recipe).to(device).train()
    teacher = copy.deepcopy(student).requires_grad_(False)
    centre, patch_centre = (Centre(recipe.prototypes, device) for _ in range(2))

    def loss_of(crops: list[Tensor]) -> Tensor:
        return _loss(recipe, student, teacher, crops, centre, patch_centre, rng)

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
    centre: Centre,
    patch_centre: Centre,
    rng: torch.Generator,
) -> Tensor:
    large, small = torch.cat(crops[:2]), crops[2:]
    with torch.no_grad(), mixed_precision(large.device):
        seen, patches = teacher(large)
        targets = centre.targets(teacher.head(seen), recipe.teacher_temperature).chunk(2)
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
        wanted = patch_centre.targets(wanted, recipe.teacher_temperature)
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
    for numbers in batches(len(pool), recipe.batch, recipe.steps, recipe.seed):
        images = torch.from_numpy(pool.images[numbers])
        crops = [crop(images, rng, SIDE, LARGE_SCALE) for _ in range(2)]
        for _ in range(recipe.local_crops):
            crops.append(crop(images, rng, recipe.local_side, SMALL_SCALE))
        yield [part.to(device) for part in crops]


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
    """Images with their brightness, contrast and balance of colours changed, some made grey."""
    n = len(images)
    gain = 1 + 0.6 * (torch.rand(n, 3, 1, 1, generator=rng) - 0.5)
    offset = 0.8 * (torch.rand(n, 1, 1, 1, generator=rng) - 0.5)
    grey = (torch.rand(n, 1, 1, 1, generator=rng) < 0.2).float()
    toned = images * gain + offset
    return toned + grey * (toned.mean(dim=1, keepdim=True) - toned)
