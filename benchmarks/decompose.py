"""Speed, memory and error of the decomposition beside the plain forward pass and the published way.

    python -m benchmarks.decompose [--models NAME …] [--batch 8] [--device cuda] [--repeats 20]
                                   [--compile] [--out FILE.parquet]
    python -m benchmarks.decompose --peaks --models ViT-L-14 --batch 256 --mode head

Plain and decomposed passes of the same batch alternate in one process after a warm-up; the ratio is
the median of the paired ratios. Each is also run for its peak memory above what was held before: on
a GPU with fresh counters, on a CPU in a process of its own that gives memory back at once. `lean`
is the decomposition's peak above that of the plain pass, in parts of the plain pass's activations:
all that its operations write. On a GPU every row is repeated under bfloat16 autocast. `--peaks`
measures the memory alone, for batches that are too large to repeat.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
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


def modes(
    name: str, model: nn.Module, width: int, options: argparse.Namespace
) -> dict[str, Callable]:  # type: ignore[type-arg]
    """What is measured beside the plain pass, by name; each returns contributions."""
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn(8, width, generator=generator).to(options.device)
    found = {
        "head": lambda x: decompose(model, x).values,
        "token, 8 directions": lambda x: (
            decompose(model, x, per="token", directions=directions).values
        ),
    }
    if name in PUBLISHED:
        found["published way"] = lambda x: decompose_published(model, x)
    return {mode: call for mode, call in found.items() if mode.split(",")[0] in options.mode}


#: Their names in short, for the command line.
MODES = ("head", "token", "published way")

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


def peak(call: Callable[[], object], device: str, warm: Callable[[], object]) -> float:
    """Peak memory of a call above what was held before, in bytes; after another, untold call."""
    if device.startswith("cuda"):
        warm()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    reader, writer = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(
        target=_peak_apart, args=(call, warm, writer)
    )
    worker.start()
    writer.close()  # so that the end of the worker is seen, whatever ended it
    try:
        growth = reader.recv()
    except EOFError:
        raise SystemExit(
            "the pass whose memory was measured was ended: too little memory"
        ) from None
    worker.join()
    return growth


def _peak_apart(call: Callable[[], object], warm: Callable[[], object], writer: Connection) -> None:
    torch.set_num_threads(1)
    warm()  # reads the pages of the libraries' code, which would count
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the old peak
    before = _status("VmRSS")
    call()
    writer.send(_status("VmHWM") - before)
    writer.close()


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


def on_device(name: str, options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """The model and a batch of noise, where they are to be."""
    model, size = make(name)
    images = torch.randn(options.batch, 3, size, size, generator=torch.Generator().manual_seed(3))
    return model.to(options.device), images.to(options.device)


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the table for one model."""
    model, images = on_device(name, options)
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
    on_cpu = not device.startswith("cuda")
    if options.compile:
        plan = plan_for(model, images)
        plain = torch.compile(plain)
        plan.runner = torch.compile(plan.runner)  # type: ignore[assignment]
    peaks: dict[str, dict[str, float]] = {}
    if not on_cpu:
        peaks = peaks_of(name, model, plain, images, options)
    elif not options.compile:  # that other process compiles nothing
        peaks = peaks_apart(name, options)
    parts = decompose(model, images)
    rows = []
    for mode, call in modes(name, model, parts.representation.shape[1], options).items():
        repeats = options.repeats if mode in FULL else max(3, options.repeats // 4)
        ratios, seconds = paired(
            lambda: timed(lambda: plain(images), device),
            lambda call=call: timed(lambda: call(images), device),  # type: ignore[misc]
            repeats,
        )
        row = {
            "model": name, "mode": mode + (", compiled" if options.compile else ""),
            "batch": options.batch, "device": device, "dtype": kind,
            "plain_images_per_s": options.batch / seconds[0],
            "images_per_s": options.batch / seconds[1],
            "ratio": statistics.median(ratios), "repeats": repeats,
            **peaks.get(mode, dict.fromkeys(MEMORY, float("nan"))),
            "error": float("nan") if mode == "published way" else float(parts.error.max()),
        }  # fmt: skip
        rows.append(row)
        print(line(row), flush=True)
    return rows


#: Bytes from which memory is asked of the system, and given back to it as soon as it is freed.
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def peaks_apart(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """`peaks_of` of a process whose memory shows what is in use, and not what was once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peaks.parquet"
        asked = ["--peaks", "--models", name, "--batch", str(options.batch), "--out", str(file)]
        asked += ["--mode", *options.mode]
        command = [sys.executable, "-m", "benchmarks.decompose", *asked]
        subprocess.run(command, env=os.environ | AT_ONCE, check=True, stdout=subprocess.DEVNULL)
        table = pd.read_parquet(file).set_index("mode")
    return table[list(MEMORY)].T.to_dict()  # type: ignore[return-value]


#: Images whose activations are counted, all being kept meanwhile; of more, as many times these.
MOST_COUNTED = 8

#: What `peaks_of` measures for every mode.
MEMORY = ("peak_mb", "plain_peak_mb", "activations_mb", "lean")


def peaks_of(
    name: str,
    model: nn.Module,
    own: Callable[[Tensor], Tensor],
    images: Tensor,
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Peak memory of one plain pass and one of each mode, weights and plan held before."""
    few, device = images[:2], options.device
    width = decompose(model, few).representation.shape[1]
    plain = peak(lambda: own(images), device, lambda: own(few))
    tops = {
        mode: peak(
            lambda call=call: call(images),
            device,
            lambda call=call: call(few),  # type: ignore[misc]
        )
        for mode, call in modes(name, model, width, options).items()
    }
    counted = images[:MOST_COUNTED]
    written = activations(lambda: plain_pass(model)(counted)) * len(images) / len(counted)
    return {
        mode: dict(zip(
            MEMORY,
            (top / 1e6, plain / 1e6, written / 1e6, (top - plain) / written), strict=True,
        ))
        for mode, top in tops.items()
    }  # fmt: skip


def only_peaks(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the table of memory for one model."""
    model, images = on_device(name, options)
    with torch.no_grad():
        found = peaks_of(name, model, plain_pass(model), images, options)
    facts = {"model": name, "batch": options.batch, "device": options.device, "dtype": "float32"}
    rows = [{**facts, "mode": mode, **memory} for mode, memory in found.items()]
    for row in rows:
        print(PEAKS_LINE.format(**row), flush=True)
    return rows


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
    "| model | mode | batch | device | dtype | peak MB | plain peak MB | activations MB | lean |\n"
    + "|---" * 9
    + "|"
)
PEAKS_LINE = (
    "| {model} | {mode} | {batch} | {device} | {dtype} | {peak_mb:.0f} | {plain_peak_mb:.0f} | "
    "{activations_mb:.0f} | {lean:.2f} |"
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
    parser.add_argument("--mode", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--peaks", action="store_true", help="memory alone, one pass each")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/decompose.parquet"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor()
    print(f"{date.today()}, {device or platform.machine()}, {options.threads} threads, "
          f"torch {torch.__version__}\n\n{PEAKS_HEAD if options.peaks else HEAD}")  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for name in options.models:
        rows += only_peaks(name, options) if options.peaks else measure(name, options)
        pd.DataFrame(rows).to_parquet(options.out)
    return 0


if __name__ == "__main__":
    if "--peaks" in sys.argv and not AT_ONCE.items() <= os.environ.items():
        again = [sys.executable, "-m", "benchmarks.decompose", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | AT_ONCE)
    sys.exit(main())
