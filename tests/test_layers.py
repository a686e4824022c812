"""The layers of docs/design.md, held: who imports whom, and what the light layer must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline_lib"

#: From the bottom up; a module may import from its own layer and from those before it.
LAYERS = (
    {"errors", "provenance", "artifacts", "artifact_reference", "config", "config_reference"},
    {
        "_torchvision", "containers", "images", "progress", "device", "gpu_claim", "text_pool",
        "coordinates", "factors",
    },
    {
        "decomposition", "maps", "map_problem", "map_ridge", "map_fits", "map_moments", "scores",
        "streamed", "textspan", "nonnegative", "significance", "roles", "truths", "validation",
        "validation_page", "comparison", "hierarchy", "token_groups", "reconstruction", "labelling",
        "passes", "classify", "ablation", "ablation_plan", "retrieval", "heatmaps", "segmentation",
        "segmentation_counts", "baseline_maps", "token_recipes", "retrieval_metrics",
        "retrieval_truth", "groups", "repair", "class_token", "mapped", "retrieval_ways", "codes",
        "spurious", "products", "search", "bars", "intervals", "redraws",
    },
    {
        "models", "listing", "manifest", "store_layout", "store", "dumps", "labelled",
        "features", "image_features", "encoder", "contributions", "moment_dumps", "estimate",
        "mirror", "world", "training",
    },
    {"report", "questions", "summary"},
    {"command_line", "__main__"},
)  # fmt: skip

#: Modules that every Snakemake process loads to read the configuration and the manifests.
LIGHT = ("config", "artifacts", "manifest", "store", "device", "dumps", "factors")


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports when it runs, not only for types."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("pipeline_lib."))
        elif isinstance(node, ast.ImportFrom) and node.module == "pipeline_lib":
            yield from (f"pipeline_lib.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline_lib."):
            yield str(node.module)


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(module: str) -> int:
    found = [number for number, layer in enumerate(LAYERS) if module in layer]
    assert found, f"{module} is in no layer: add it to docs/design.md and to this test"
    return found[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_from_its_layer_or_below(path: Path) -> None:
    own = layer_of(module_of(path))
    for name in imports(path):
        other = name.split(".")[1]
        if other == "__version__":
            continue
        assert layer_of(other) <= own, f"{path.name} imports {other}, which lies above it"


def test_the_design_names_every_module() -> None:
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    section = design[design.index("## Layers") : design.index("## Stages")]
    for module in set().union(*LAYERS) - {"_torchvision"}:
        assert f"`{module}`" in section or f"`{module}/`" in section, module


def test_modules_that_every_job_loads_are_free_of_torch() -> None:
    code = (
        f"import sys\nfor name in {LIGHT}: __import__('pipeline_lib.' + name)\n"
        "sys.exit(', '.join({'torch', 'timm', 'open_clip'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_the_library_prints_nothing_and_knows_nothing_of_snakemake(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            pytest.fail(f"{path}:{node.lineno} prints; use logging")
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] == "snakemake" for name in names), path
        loads = getattr(node, "func", None)
        if isinstance(loads, ast.Attribute) and loads.attr == "load":
            assert getattr(loads.value, "id", "") not in ("yaml", "pickle"), path


@pytest.mark.parametrize("path", sorted((ROOT / "workflow").rglob("*.smk")), ids=lambda p: p.stem)
def test_files_of_rules_are_short_and_free_of_torch(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= (100 if path.stem == "common" else 150)
    assert not any("import torch" in line for line in lines)


def test_scripts_are_thin() -> None:
    for path in (ROOT / "workflow" / "scripts").glob("[!_]*.py"):
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 90, path
        if "job(snakemake)" in text:  # Snakemake puts its own lines before the script's
            assert "from __future__" not in text, path
