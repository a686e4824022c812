"""Which architectures are covered: families of timm and of open_clip's image towers.

A family is what is left of a model's name without the words for its size, patch, window and
resolution; its representative is the variant with the fewest parameters. The list is read from the
installed libraries, so that a new family of a new version appears by itself.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.decomposition.capture import Representation

#: timm's modules of convolutional networks, which this project leaves out. All other modules count
#: as transformers, hybrids of convolution and attention, or mixers.
CONVNETS = frozenset(
    [
        "byobnet",
        "convmixer",
        "convnext",
        "cspnet",
        "cspnext",
        "csatv2",
        "densenet",
        "dla",
        "dpn",
        "efficientnet",
        "fasternet",
        "ghostnet",
        "hardcorenas",
        "hgnet",
        "hrnet",
        "inception_next",
        "inception_resnet_v2",
        "inception_v3",
        "inception_v4",
        "lcnetv2",
        "mobilenetv3",
        "nasnet",
        "nfnet",
        "pnasnet",
        "rdnet",
        "regnet",
        "repghost",
        "res2net",
        "resnest",
        "resnet",
        "resnetv2",
        "rexnet",
        "selecsls",
        "senet",
        "sknet",
        "starnet",
        "tresnet",
        "vgg",
        "vovnet",
        "xception",
        "xception_aligned",
    ]
)

#: More parameters than this, and a representative is made with fewer blocks.
LARGE = 8_000_000

_SIZE = re.compile(
    r"""^(
    zepto|atto|femto|pico|nano|xx?|xx?s\d*|xt|x{0,2}tiny|mini|x?small|mediumd?|base|x{0,2}large2?
    |huge|giant(opt)?|gigantic|enormous|d?little|betwixt|d?p?wee|sm|plus|wide|tall|short|so\d+m2?
    |intern\d+m|ti|[0-9.]+g|\d+[kmb]?|\d+[sd]|(patch|window|p|r|w|s|m|t|b|h|l|e|d|ti)\d+
    |window\d+to\d+|\d+to\d+|b\d+pt\d+|xx[sl]|x?[stmblhgn]|7b
    )$""",
    re.VERBOSE,
)
_NUMBERED = re.compile(r"^(.*net|sa|ma|mci)\d+[a-z]*$")
_KEPT = ("deit3", "beit3", "eva02", "aimv2", "sam2")


@dataclass(frozen=True)
class Case:
    """One architecture to check, and how it is made smaller."""

    library: str
    module: str
    family: str
    model: str
    parameters: int
    variants: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def family_of(name: str) -> str:
    """Name of a timm model without the words for its size.

    >>> family_of("vit_small_patch14_reg4_dinov2"), family_of("swinv2_tiny_window8_256")
    ('vit_reg4_dinov2', 'swinv2')
    """
    first, *rest = name.split("_")
    if first not in _KEPT:
        first = re.sub(r"(?<=[a-z])\d\d+[a-z]*$", "", first)
    kept = [word for word in rest if not _SIZE.match(word)]
    return "_".join([first, *(_NUMBERED.sub(r"\1", word) for word in kept)])


def timm_names() -> dict[str, str]:
    """Every timm model of a transformer, hybrid or mixer module, with the name of its module."""
    ensure_torchvision()
    import timm

    modules = sorted(set(timm.models._registry._module_to_models) - CONVNETS)
    return {
        name: module
        for module in modules
        for name in timm.list_models(module=module)
        if not name.startswith("test_")
    }


def parameter_counts(names: Iterable[str], cache: Path | None = None) -> dict[str, int]:
    """Parameters of timm models, counted without allocating them; kept in a file if given."""
    import timm

    known: dict[str, int] = {}
    if cache is not None and cache.is_file():
        stored = json.loads(cache.read_text())
        known = stored["counts"] if stored.get("timm") == timm.__version__ else {}
    fresh = [name for name in names if name not in known]
    for name in fresh:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        known[name] = sum(parameter.numel() for parameter in model.parameters())
    if cache is not None and fresh:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps({"timm": timm.__version__, "counts": known}, indent=0))
    return known


def timm_cases(
    cache: Path | None = None, *, every: bool = False, wanted: Iterable[str] = ()
) -> list[Case]:
    """The smallest model of every family, or with `every` each model of timm.

    `wanted` limits the families to those that are named, or whose module or a model of which is.
    """
    families: dict[tuple[str, str], list[str]] = {}
    for name, module in timm_names().items():
        families.setdefault((module, family_of(name)), []).append(name)
    if wanted:
        chosen = set(wanted)
        families = {key: members for key, members in families.items() if chosen & {*key, *members}}
    counts = parameter_counts((name for members in families.values() for name in members), cache)
    cases = []
    for (module, family), members in families.items():
        members.sort(key=lambda name: (counts[name], name))
        for name in members if every else members[:1]:
            cases.append(Case("timm", module, family, name, counts[name], len(members)))
    return cases


_OPEN_CLIP_SIZES = (
    "layers", "width", "head_width", "patch_size", "image_size", "mlp_ratio", "patch_dropout",
    "timm_drop", "timm_drop_path", "timm_model_pretrained",
)  # fmt: skip


def open_clip_cases(*, every: bool = False) -> list[Case]:
    """One image tower per kind of configuration of open_clip, convolutional towers left out."""
    ensure_torchvision()
    import open_clip

    convolutional = ("convnext",)
    families: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        timm_name = vision.get("timm_model_name")
        if timm_name and timm_name.startswith(convolutional):
            continue
        options = {k: v for k, v in vision.items() if k not in _OPEN_CLIP_SIZES}
        if timm_name:
            options["timm_model_name"] = family_of(timm_name)
        layers = vision.get("layers", 12)
        kind = "RN50" if isinstance(layers, list) else (timm_name and family_of(timm_name)) or "ViT"
        notes = [key for key in ("attentional_pool", "ls_init_value", "pool_type") if key in vision]
        notes += ["quick_gelu"] if config.get("quick_gelu") else []
        notes += ["coca"] if "multimodal_cfg" in config else []
        notes += [str(vision[k]) for k in ("timm_pool", "timm_proj") if vision.get(k)]
        family = " ".join([kind, *notes])
        size = vision.get("width", 768) ** 2 * (layers if isinstance(layers, int) else sum(layers))
        families.setdefault(family, []).append((size, name, config))
    cases = []
    for family, members in sorted(families.items()):
        members.sort(key=lambda entry: entry[:2])
        for size, name, config in members if every else members[:1]:
            cases.append(
                Case("open_clip", "open_clip", family, name, size, len(members), config=config)
            )
    return cases


def build(case: Case) -> tuple[nn.Module, int, dict[str, Any]]:
    """The untrained model of a case, the input size to use, and the settings that reduced it."""
    ensure_torchvision()
    return _build_timm(case) if case.library == "timm" else _build_open_clip(case)


class MeanOfTokens(nn.Module):
    """An encoder that returns its tokens, pooled: what is refused without such a module."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder(images)
        return tokens.mean(1) if tokens.dim() == 3 else tokens.mean((2, 3))


def _with_one_vector(model: nn.Module, size: int) -> nn.Module:
    """The model, or its pooled tokens where it returns these and has no head."""
    if Representation(model).kind != "output":
        return model
    with torch.no_grad():
        output = model(torch.zeros(1, 3, size, size))
    several = isinstance(output, Tensor) and output.dim() > 2
    return MeanOfTokens(model).eval() if several else model


def _build_timm(case: Case) -> tuple[nn.Module, int, dict[str, Any]]:
    import timm

    native = timm.get_pretrained_cfg(case.model)
    size = native.input_size[-1] if native is not None else 224
    options: list[dict[str, Any]] = [{}]
    if case.parameters > LARGE:
        options = [{"depth": 4}, {"depths": (1, 1, 2, 1)}, {"layers": (1, 1, 2, 1)}, {}]
    smaller = size if size <= 256 else 256 if size % 256 == 0 else 224
    if smaller < size:
        sizes = (smaller, 192)  # 192 = 4 · 48, for patches that are pooled by threes
        options = [{**o, "img_size": s} for s in sizes for o in options] + options
    for chosen in options:
        try:
            model = timm.create_model(case.model, pretrained=False, **chosen)
        except (TypeError, AssertionError, ValueError, IndexError, RuntimeError):
            if not chosen:
                raise
            continue
        model.eval()
        if "img_size" in chosen and not _takes(model, chosen["img_size"]):
            continue
        if "img_size" not in chosen and smaller < size and _takes(model, smaller):
            size = smaller
        size = chosen.get("img_size", size)
        cut = shorten(model, size) if case.parameters > LARGE else 0
        whole = _with_one_vector(model, size)
        wrapped = {"read at": "the mean of its tokens"} if whole is not model else {}
        return whole, size, {**chosen, **({"blocks cut": cut} if cut else {}), **wrapped}
    raise AssertionError("not reached")


#: Blocks of one shape that are kept of a row of such blocks: enough for shifted windows.
MOST_ALIKE = 2


def shorten(model: nn.Module, size: int) -> int:
    """Cut rows of blocks of equal class and shapes to `MOST_ALIKE`; the number of blocks cut.

    Nothing is cut where the model does not run without them.
    """
    lists = [m for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    before = [(blocks, dict(blocks._modules)) for blocks in lists]
    for blocks in lists:
        seen: list[object] = []
        for name, block in list(blocks._modules.items()):
            shape = (type(block), tuple(tuple(p.shape) for p in block.parameters()))  # type: ignore[union-attr]
            seen = [*seen, shape] if seen and seen[-1] == shape else [shape]
            if len(seen) > MOST_ALIKE and len(list(block.modules())) > 4:  # type: ignore[union-attr]
                del blocks._modules[name]
    cut = sum(len(whole) - len(blocks._modules) for blocks, whole in before)
    if cut and not _takes(model, size):
        for blocks, whole in before:
            blocks._modules.clear()
            blocks._modules.update(whole)
        return 0
    return cut


def _takes(model: nn.Module, size: int) -> bool:
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except Exception:  # whatever a library raises at a shape or a depth it was not made for
        return False
    return True


#: A text tower as small as can be: only the image tower is read.
_TEXT = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1}


def _build_open_clip(case: Case) -> tuple[nn.Module, int, dict[str, Any]]:
    from open_clip import CLIP, CoCa

    config = copy.deepcopy(case.config)
    config["text_cfg"] = dict(_TEXT)
    for key in ("custom_text", "init_logit_bias", "init_logit_scale", "nonscalar_logit_scale"):
        config.pop(key, None)
    reduced: dict[str, Any] = {}
    vision = config["vision_cfg"]
    vision.pop("timm_model_pretrained", None)
    if isinstance(vision.get("layers"), int) and case.parameters > 8 * 768**2:
        vision["layers"] = reduced["layers"] = 4
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] = {**_TEXT, "context_length": 8}
        model: nn.Module = CoCa(**config)
    else:
        model = CLIP(**config)
    size = vision.get("image_size", 224)
    cut = shorten(model.visual, size)
    return model.eval(), size, {**reduced, **({"blocks cut": cut} if cut else {})}
