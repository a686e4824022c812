"""The command line: `python -m pipeline_lib VERB …`, for a question rather than a pipeline.

Parsing and showing; the answers are in `questions`. A user's mistake ends with its message and exit
code 2, and without a traceback.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline_lib.errors import DataError, VitAtlasError
from pipeline_lib.provenance import fault_report

#: Exit code of a mistake of the user, as argparse has it.
MISTAKE = 2

#: Exit code of a fault of this project.
FAULT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, `MISTAKE` or `FAULT`."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    answer: Callable[[argparse.Namespace], str] = given.answer
    try:
        sys.stdout.write(answer(given).rstrip() + "\n")
    except VitAtlasError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return MISTAKE
    except BrokenPipeError:
        return 0
    except Exception as error:
        words = " ".join(sys.argv[1:] if arguments is None else arguments)
        sys.stderr.write(traceback.format_exc())
        sys.stderr.write("\n" + fault_report(error, {"command": f"{parser.prog} {words}"}) + "\n")
        return FAULT
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_lib",
        description="vit-atlas: what each part of a vision transformer contributes, in words.",
        epilog="The pipeline itself is run by snakemake; see the README.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _models(verbs)
    _inspect(verbs)
    _retrieve(verbs)
    _heatmap(verbs)
    _describe(verbs)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    example: str,
    answer: Callable[[argparse.Namespace], str],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  python -m pipeline_lib {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(answer=answer)
    return parser


def _models(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "models", "List the models that can be named, or the table of support.",
        "models --library timm deit", _list,
    )  # fmt: skip
    parser.add_argument("words", nargs="?", default="", help="part of the name")
    parser.add_argument("--library", choices=("timm", "open_clip"), default="timm")
    parser.add_argument(
        "--support", action="store_true", help="what has been checked, family by family"
    )


def _inspect(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "inspect", "Components, sum error on random images, cost and size of a model.",
        "inspect timm:vit_tiny_patch16_224 --random-weights", _show_model,
    )  # fmt: skip
    _model_options(parser)
    parser.add_argument("--components", action="store_true", help="list every component")


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="id, for example timm:NAME or open_clip:NAME/TAG")
    parser.add_argument("--weights", type=Path, help="file of weights (safetensors)")
    parser.add_argument(
        "--random-weights", action="store_true", help="build the model without loading weights"
    )


def _retrieve(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "retrieve", "Images of a finished run that show a property.",
        "retrieve config/demo.yaml --model deit --property colour --text red --out red.png",
        _show_found,
    )  # fmt: skip
    _run_options(parser)
    parser.add_argument("--property", required=True, help="a key of `concepts`")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", help="one of the property's texts")
    asked.add_argument("--image", type=Path, help="any image file, searched by its likes")
    parser.add_argument(
        "--components", type=_count,
        help="components added up, those with the highest scores; by default as the run has chosen",
    )  # fmt: skip
    parser.add_argument("--count", type=_count, default=8, help="images to find")
    parser.add_argument("--out", type=Path, help="PNG of the images found")


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="configuration file of the run")
    parser.add_argument("--model", required=True, help="model of the run")
    parser.add_argument("--dataset", help="data set of the run; by default that of the maps")


def _heatmap(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "heatmap", "Where in a picture a class or a text comes from.",
        "heatmap timm:local-dir:resources/models/swin picture.png --class star --out star.png",
        _show_heatmap,
    )  # fmt: skip
    _model_options(parser)
    parser.add_argument("image", type=Path, help="image file")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--class", dest="wanted", help="class; by default the predicted one")
    asked.add_argument("--text", help="text, for a CLIP model")
    parser.add_argument("--components", nargs="+", metavar="ID", help="components; all by default")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")


def _describe(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "describe", "An image as a short list of texts, and who carries each.",
        "describe config/demo.yaml picture.png --model clip-small", _show_texts,
    )  # fmt: skip
    _run_options(parser)
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("--texts", type=_count, default=5, help="most texts")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is no count; give 1 or more")
    return value


def _list(given: argparse.Namespace) -> str:
    if given.support:
        page = Path(__file__).resolve().parents[1] / "docs" / "supported-models.md"
        if not page.is_file():
            raise DataError(f"{page} is not there: the table of support comes with the repository")
        lines = page.read_text("utf-8").splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("| family")]
        rows = [line for line in lines[min(starts, default=0) :] if line.startswith("|")]
        return "\n".join(rows[:2] + [line for line in rows[2:] if given.words in line])
    from pipeline_lib.questions import list_models

    found = list_models(given.library, given.words)
    if not found:
        raise DataError(f"no model of {given.library} has {given.words!r} in its name")
    return "\n".join(found)


def _show_model(given: argparse.Namespace) -> str:
    from pipeline_lib.models import load_model
    from pipeline_lib.questions import inspect_model

    pretrained = False if given.random_weights else None
    found = inspect_model(load_model(given.model, weights=given.weights, pretrained=pretrained))
    kinds = found.components["kind"].value_counts().to_dict()
    lines = [
        f"components       {len(found.components)}: "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        f"representation   {found.width} numbers: {found.readout}",
        f"sum error        {found.error:.1e} (relative, largest of random images)",
        f"time per image   {1000 * found.plain:.1f} ms plain, {1000 * found.decomposed:.1f} ms "
        "decomposed",
        f"size             {found.megabytes:.0f} MB for 1,000 images, whole and in float32",
    ]
    if given.components:
        columns = ["component", "id", "kind", "layer", "head", "tokens"]
        lines += ["", found.components[columns].to_string(index=False)]
    return "\n".join(lines)


def _show_found(given: argparse.Namespace) -> str:
    from pipeline_lib.config import image_root
    from pipeline_lib.questions import Run, draw_grid, find

    run = Run.open(given.config, given.model, given.dataset)
    found = find(
        run,
        given.property,
        text=given.text,
        image=given.image,
        components=given.components,
        count=given.count,
    )
    if given.out is not None:
        root = image_root(run.config, run.dataset)
        files = [root / name for name in found["path"]]
        draw_grid({given.property: files}, given.out, given.image)
    return found.to_string(index=False, float_format="%.3f")


def _show_heatmap(given: argparse.Namespace) -> str:
    from pipeline_lib.models import load_model
    from pipeline_lib.questions import heatmap

    pretrained = False if given.random_weights else None
    model = load_model(given.model, weights=given.weights, pretrained=pretrained)
    name = heatmap(
        model,
        given.image,
        given.out,
        wanted=given.wanted,
        text=given.text,
        components=given.components,
    )
    return f"{given.out}: {name}"


def _show_texts(given: argparse.Namespace) -> str:
    from pipeline_lib.questions import Run, describe

    run = Run.open(given.config, given.model, given.dataset)
    found = describe(run, given.image, texts=given.texts)
    if found.empty:
        return "no text of the pool explains what is special in this image"
    return found.to_string(index=False, float_format="%.2f")
