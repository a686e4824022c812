"""Speed, memory and error of the decomposition beside the plain forward pass and the published way.

    python -m benchmarks.decompose [--models NAME …] [--batch 8] [--device cuda] [--repeats 20]
                                   [--baseline] [--autocast] [--out FILE.parquet]

Plain and decomposed passes of the same batch alternate in one process after a warm-up; the ratio is
the median of the paired ratios. Memory is the peak above what was held before the call, minus that
of the plain pass (CPU: growth of the process's peak; only a rise above earlier ones can be seen).
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.published import decompose_published
from benchmarks.randomise import randomise
from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.decomposition import decompose

#: Models of the table: the library's name, and settings.
MODELS: dict[str, tuple[str, int, dict[str, object]]] = {
    "vit_small_patch16_224": ("timm", 224, {}),
    "vit_base_patch16_224": ("timm", 224, {}),
    "deit_small_distilled_patch16_224": ("timm", 224, {}),
    "vit_small_patch14_reg4_dinov2": ("timm", 224, {"img_size": 224}),
    "swin_tiny_patch4_window7_224": ("timm", 224, {}),
    "swin_base_patch4_window7_224": ("timm", 224, {}),
    "maxvit_tiny_tf_224": ("timm", 224, {}),
    "coatnet_nano_rw_224": ("timm", 224, {}),
    "vit_base_patch32_siglip_256": ("timm", 256, {}),
    "ViT-B-32": ("open_clip", 224, {}),
    "ViT-L-14": ("open_clip", 224, {}),
}
DEFAULT = [name for name in MODELS if name not in ("swin_base_patch4_window7_224", "ViT-L-14")]

#: Plain vision transformers, for which the published way is written down.
PUBLISHED = ("vit_small_patch16_224", "vit_base_patch16_224")


def make(name: str) -> tuple[nn.Module, int]:
    """The model with random weights, and its input size."""
    ensure_torchvision()
    library, size, kwargs = MODELS[name]
    if library == "timm":
        import timm

        return randomise(timm.create_model(name, pretrained=False, **kwargs)), size
    import open_clip

    return randomise(open_clip.create_model(name, load_weights=False, **kwargs)), size


def plain_pass(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model's own way to its representation."""
    if hasattr(model, "encode_image"):
        return model.encode_image  # type: ignore[return-value]
    return lambda x: model.forward_head(model.forward_features(x), pre_logits=True)  # type: ignore[operator]


def modes(name: str, model: nn.Module, width: int, device: str, baseline: bool) -> dict:  # type: ignore[type-arg]
    """What is timed against the plain pass, by name; each returns contributions."""
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn(8, width, generator=generator).to(device)
    found = {
        "head": lambda x: decompose(model, x).values,
        "layer": lambda x: decompose(model, x, per="layer").values,
        "token, 8 directions": lambda x: (
            decompose(model, x, per="token", directions=directions).values
        ),
    }
    if baseline and name in PUBLISHED:
        found["published way"] = lambda x: decompose_published(model, x)
    return found


class Clock:
    """Times and peak memory of a call on one device."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def run(self, call: Callable[[], object]) -> tuple[float, float]:
        """Seconds, and bytes at the peak above what was held before."""
        before = self._start()
        begin = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin, self._peak() - before

    def _start(self) -> float:
        if not self.cuda:
            return self._peak()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def _peak(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the table for one model."""
    model, size = make(name)
    model.to(options.device)
    images = torch.randn(options.batch, 3, size, size, generator=torch.Generator().manual_seed(3))
    images = images.to(options.device)
    plain, clock = plain_pass(model), Clock(options.device)
    cast = torch.autocast("cuda", torch.bfloat16) if options.autocast else nullcontext()
    rows = []
    with torch.no_grad(), cast:
        parts = decompose(model, images)
        error = float(parts.error.max())
        width = parts.representation.shape[1]
        for mode, call in modes(name, model, width, options.device, options.baseline).items():
            slow = mode == "published way"
            ratios, seconds, extra = paired(
                clock, lambda: plain(images), lambda call=call: call(images),
                3 if slow else options.repeats,
            )  # fmt: skip
            row = {
                "model": name, "mode": mode, "batch": options.batch, "device": options.device,
                "dtype": "bfloat16 autocast" if options.autocast else "float32",
                "plain_images_per_s": options.batch / seconds[0],
                "images_per_s": options.batch / seconds[1],
                "ratio": statistics.median(ratios), "memory_above_plain_mb": extra / 1e6,
                "error": float("nan") if slow else error,
            }  # fmt: skip
            rows.append(row)
            print(line(row), flush=True)
    return rows


def paired(
    clock: Clock, plain: Callable[[], object], other: Callable[[], object], repeats: int
) -> tuple[list[float], tuple[float, float], float]:
    """Paired ratios, median seconds of both, and memory of the second above the first."""
    for _ in range(1 if repeats < 5 else 3):
        plain(), other()
    times: list[tuple[float, float]] = []
    extra = 0.0
    for _ in range(repeats):
        first, held = clock.run(plain)
        second, peak = clock.run(other)
        times.append((first, second))
        extra = max(extra, peak - held)
    medians = tuple(statistics.median(column) for column in zip(*times))
    return [second / first for first, second in times], medians, extra  # type: ignore[return-value]


HEAD = (
    "| model | mode | batch | device | dtype | plain img/s | img/s | ratio | memory MB | error |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, object]) -> str:
    """One row as Markdown."""
    return (
        "| {model} | {mode} | {batch} | {device} | {dtype} | {plain_images_per_s:.1f} | "
        "{images_per_s:.1f} | {ratio:.2f} | {memory_above_plain_mb:.0f} | {error:.0e} |"
    ).format(**row)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="*", default=DEFAULT, choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--baseline", action="store_true", help="also the published way")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast (GPU)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/decompose.parquet"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor()
    print(f"{date.today()}, {device or platform.machine()}, {options.threads} threads, "
          f"torch {torch.__version__}\n\n{HEAD}")  # fmt: skip
    rows = [row for name in options.models for row in measure(name, options)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
