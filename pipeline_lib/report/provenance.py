"""Facts on a run as a whole: which code, which settings, which packages, which machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline_lib.config import RunConfig

#: Packages whose versions can change a result.
PACKAGES = (
    "torch",
    "timm",
    "open_clip_torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "zarr",
    "pillow",
    "matplotlib",
    "snakemake",
)


def run_facts(config: RunConfig) -> dict[str, Any]:
    """Commit, hash of the configuration, versions and machine, as words by name."""
    return {
        "vit-atlas": version_of("vit-atlas"),
        "git commit": git_commit(Path(__file__).parent),
        "configuration hash": config_hash(config),
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version_of(name)}" for name in PACKAGES),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }


def version_of(package: str) -> str:
    """Installed version of a package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def config_hash(config: RunConfig) -> str:
    """SHA-256 of the configuration, apart from where its results go.

    Two files that mean the same have the same hash, whatever their order and comments.
    """
    content = config.model_dump(mode="json", exclude={"results"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def git_commit(folder: Path) -> str:
    """Commit that the code in `folder` is at, and whether files were changed since."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return "not a git checkout"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with uncommitted changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
