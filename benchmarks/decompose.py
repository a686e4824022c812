"""Speed, memory and error of the decomposition beside the plain forward pass and the published way.

    python -m benchmarks.decompose [--models NAME …] [--batch 8] [--device cuda] [--repeats 20]
                                   [--compile] [--out FILE.parquet]
    python -m benchmarks.decompose --peaks --models ViT-L-14 --batch 256

Plain and decomposed passes of the same batch alternate in one process after a warm-up; the ratio is
the median of the paired ratios. Each is also run once in a process of its own (CPU) or with fresh
counters (GPU) for its peak memory above what was held before. `lean` is the decomposition's peak
above that of the plain pass, in parts of the plain pass's activations: all that its operations
write. On a GPU every row is repeated under bfloat16 autocast. `--peaks` measures the peaks alone,
of one plain and one decomposed pass, for batches that are too large to repeat.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.published import decompose_published
from benchmarks.randomise import randomise
from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.decomposition import decompose, plan_for

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
DEFAULT = [name for name in MODELS if name != "ViT-L-14"]

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


def modes(name: str, model: nn.Module, width: int, device: str) -> dict[str, Callable]:  # type: ignore[type-arg]
    """What is timed against the plain pass, by name; each returns contributions."""
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn(8, width, generator=generator).to(device)
    found = {
        "head": lambda x: decompose(model, x).values,
        "token, 8 directions": lambda x: (
            decompose(model, x, per="token", directions=directions).values
        ),
    }
    if name in PUBLISHED:
        found["published way"] = lambda x: decompose_published(model, x)
    return found


#: Modes whose bar is stated on 20 repeats; the others are slower, and repeated less.
FULL = ("head",)


class Written(TorchDispatchMode):
    """Counts the bytes that operations write, views left out, by keeping everything alive."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                place = tensor.untyped_storage().data_ptr()
                if place not in inputs:
                    self.kept.setdefault(place, tensor)
        return out

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


def activations(call: Callable[[], object]) -> int:
    """Bytes that a call writes, all operations together."""
    with Written() as written:
        call()
    return written.bytes


def peak(call: Callable[[], object], device: str) -> float:
    """Peak memory of a call above what was held before, in bytes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    reader, writer = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=_peak_apart, args=(call, writer))
    worker.start()
    growth = reader.recv()
    worker.join()
    return growth


def _peak_apart(call: Callable[[], object], writer: Connection) -> None:
    torch.set_num_threads(1)
    _give_memory_back()
    before = _status("VmRSS")
    call()
    writer.send(_status("VmHWM") - before)
    writer.close()


def _give_memory_back() -> None:
    """Let glibc return what was freed, now and at once from here on, and forget the old peak: else
    memory that is held but unused serves the call and is not seen."""
    libc, mmap_threshold = ctypes.CDLL("libc.so.6"), -3
    libc.mallopt(mmap_threshold, 2**16)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    """Bytes of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the table for one model."""
    model, size = make(name)
    model.to(options.device)
    images = torch.randn(options.batch, 3, size, size, generator=torch.Generator().manual_seed(3))
    images = images.to(options.device)
    kinds = ["float32"]
    if options.device.startswith("cuda"):
        kinds += ["bfloat16 autocast"]
    rows: list[dict[str, object]] = []
    for kind in kinds:
        cast = torch.autocast("cuda", torch.bfloat16) if kind != "float32" else nullcontext()
        with torch.no_grad(), cast:
            rows += rows_of(name, model, images, kind, options)
    return rows


def rows_of(
    name: str, model: nn.Module, images: Tensor, kind: str, options: argparse.Namespace
) -> list[dict[str, object]]:
    plain, device = plain_pass(model), options.device
    if options.compile:
        plan = plan_for(model, images)
        plain = torch.compile(plain)
        plan.runner = torch.compile(plan.runner)  # type: ignore[assignment]
    parts = decompose(model, images)
    written = activations(lambda: plain_pass(model)(images))
    held = peak(lambda: plain(images), device)
    rows = []
    for mode, call in modes(name, model, parts.representation.shape[1], device).items():
        repeats = options.repeats if mode in FULL else max(3, options.repeats // 4)
        ratios, seconds = paired(
            lambda: timed(lambda: plain(images), device),
            lambda call=call: timed(lambda: call(images), device),  # type: ignore[misc]
            repeats,
        )
        top = peak(lambda call=call: call(images), device)  # type: ignore[misc]
        row = {
            "model": name, "mode": mode + (", compiled" if options.compile else ""),
            "batch": options.batch, "device": device, "dtype": kind,
            "plain_images_per_s": options.batch / seconds[0],
            "images_per_s": options.batch / seconds[1],
            "ratio": statistics.median(ratios), "repeats": repeats,
            "peak_mb": top / 1e6, "plain_peak_mb": held / 1e6, "activations_mb": written / 1e6,
            "lean": (top - held) / written,
            "error": float("nan") if mode == "published way" else float(parts.error.max()),
        }  # fmt: skip
        rows.append(row)
        print(line(row), flush=True)
    return rows


def peaks_of(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Peak memory of one plain and one decomposed pass per head, weights and plan held before."""
    model, size = make(name)
    model.to(options.device)
    images = torch.randn(options.batch, 3, size, size, generator=torch.Generator().manual_seed(3))
    images = images.to(options.device)
    with torch.no_grad():
        parts = decompose(model, images[:2])
        plain = peak(lambda: plain_pass(model)(images), options.device)
        whole = peak(lambda: decompose(model, images).values, options.device)
    row = {
        "model": name, "batch": options.batch, "device": options.device, "dtype": "float32",
        "peak_mb": whole / 1e6, "plain_peak_mb": plain / 1e6, "error": float(parts.error.max()),
    }  # fmt: skip
    print(PEAKS_LINE.format(**row), flush=True)
    return row


def paired(
    plain: Callable[[], float], other: Callable[[], float], repeats: int
) -> tuple[list[float], tuple[float, float]]:
    """Paired ratios, and the median seconds of both."""
    for _ in range(2 if repeats < 10 else 3):
        plain(), other()
    times = [(plain(), other()) for _ in range(repeats)]
    first, second = zip(*times, strict=True)
    ratios = [after / before for before, after in times]
    return ratios, (statistics.median(first), statistics.median(second))


HEAD = (
    "| model | mode | batch | device | dtype | plain img/s | img/s | ratio | repeats | peak MB | "
    "plain peak MB | activations MB | lean | error |\n" + "|---" * 14 + "|"
)

PEAKS_HEAD = (
    "| model | batch | device | dtype | peak MB | plain peak MB | error |\n" + "|---" * 7 + "|"
)
PEAKS_LINE = (
    "| {model} | {batch} | {device} | {dtype} | {peak_mb:.0f} | {plain_peak_mb:.0f} | {error:.0e} |"
)


def line(row: dict[str, object]) -> str:
    """One row as Markdown."""
    return (
        "| {model} | {mode} | {batch} | {device} | {dtype} | {plain_images_per_s:.1f} | "
        "{images_per_s:.1f} | {ratio:.2f} | {repeats} | {peak_mb:.0f} | {plain_peak_mb:.0f} | "
        "{activations_mb:.0f} | {lean:.2f} | {error:.0e} |"
    ).format(**row)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="*", default=DEFAULT, choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="both passes through torch.compile")
    parser.add_argument("--peaks", action="store_true", help="peak memory alone, one pass each")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/decompose.parquet"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor()
    print(f"{date.today()}, {device or platform.machine()}, {options.threads} threads, "
          f"torch {torch.__version__}\n\n{PEAKS_HEAD if options.peaks else HEAD}")  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for name in options.models:
        rows += [peaks_of(name, options)] if options.peaks else measure(name, options)
        pd.DataFrame(rows).to_parquet(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
