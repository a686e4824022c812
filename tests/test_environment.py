"""pyproject.toml, constraints.txt and environment.yml tell one story."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline_lib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DECLARED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pinned(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("line", DECLARED)
def test_every_dependency_has_a_tested_version_that_fits(line: str) -> None:
    wanted = Requirement(line)
    tested = pinned(constraints()[canonicalize_name(wanted.name)])
    assert wanted.specifier.contains(tested)


def test_constraints_serve_machines_with_and_without_a_gpu() -> None:
    for name, requirement in constraints().items():
        assert "+" not in pinned(requirement), f"{name}: a local version fits one kind of machine"
        assert not name.startswith(("nvidia", "triton", "cuda")), name
        assert requirement.url is None and requirement.marker is None


def test_the_conda_environment_points_at_the_same_files() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    python = next(line for line in conda if line.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        python.removeprefix("python=")
    )
    assert "pip" in conda


def test_this_environment_is_the_tested_one() -> None:
    """What runs these tests is what the file says was tested; a warning for users who upgrade."""
    differing = {
        name: (version(name), pinned(requirement))
        for name, requirement in constraints().items()
        if version(name).split("+")[0] != pinned(requirement)
    }
    if differing:
        pytest.skip(f"another environment than constraints.txt: {differing}")


def test_the_version_is_said_once() -> None:
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assert version("vit-atlas") == pipeline_lib.__version__


def test_the_makefile_builds_from_these_files() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert '--constraint constraints.txt --editable ".[dev]"' in makefile
    for target in ("demo:", "test:", "lint:"):
        assert f"\n{target}" in makefile


def test_no_dependency_is_imported_undeclared() -> None:
    """Every third-party package that the library imports is in pyproject.toml."""
    import ast
    import sys

    provided = {
        "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn",
        "open_clip": "open-clip-torch", "pytorch_grad_cam": "grad-cam",
    }  # fmt: skip
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for path in (ROOT / "pipeline_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(str(node.module))
            for name in (name.split(".")[0] for name in names):
                if name in sys.stdlib_module_names or name == "pipeline_lib":
                    continue
                package = canonicalize_name(provided.get(name, name))
                optional = {"selenium", "boto3", "datasets"}  # with an extra of their own
                assert package in declared | optional, f"{path} imports {name}"
