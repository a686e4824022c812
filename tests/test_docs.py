"""The documentation: every command in it exists as written, and what is cheap is run.

Commands that run the pipeline for minutes are held against Snakemake's own parser, the rules and
the configuration; those of the command line and all Python run on a finished tiny run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from documents import PAGES, ROOT, Block, Command, blocks, commands, tables
from running import photograph, plan, rules_of

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.command_line import main, make_parser
from pipeline_lib.config import load_config

LANGUAGES = {"bash", "console", "python", "yaml", "mermaid", "text"}

#: Programs that are no part of this project, and why no test starts them.
NOT_RUN = {
    "conda": "needs conda; what it installs is compared in test_environment.py",
    "pip": "needs a package index",
    "export": "of the shell",
}

#: What stands in for the run and the files of a page, by words that are replaced.
STAND_INS = {
    "config/demo.yaml": "config.yaml",
    "results/mine": "results/test",
    "photos.repair": "spurious.repair",
    "photos.": "world.",
    "--property scene": "--property shape",
    "n=2000": "n=4",
    "n_train=4000, n_test=1000": "n_train=8, n_test=8",
}

COMMANDS = commands()

#: What ends a cell of a table.
_CELL = r"(?<!\\)\|"


def stand_in(text: str) -> str:
    for words, other in STAND_INS.items():
        text = text.replace(words, other)
    return text


@pytest.fixture
def workplace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the pages have it, with a finished run and a picture."""
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copy(finished / "config.yaml", tmp_path)
    (tmp_path / "results").symlink_to(finished / "results")
    picture = next((finished / "results/test/world/world/images").glob("*.png"))
    shutil.copy(picture, tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 25 and len(blocks("python")) > 5 and len(blocks("yaml")) > 5


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.place)
def test_every_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.place}: ```{block.language}"


def test_rows_of_tables_have_as_many_cells_as_their_head() -> None:
    assert len(tables()) > 40
    for head, *rows in tables():
        for row in rows:
            assert len(re.findall(_CELL, row)) == len(re.findall(_CELL, head)), row


def check_make(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_snakemake(words: list[str]) -> None:
    from snakemake.cli import get_argument_parser

    given, unknown = get_argument_parser().parse_known_args(words)
    assert not unknown
    rules = "\n".join(path.read_text("utf-8") for path in (ROOT / "workflow").rglob("*.smk"))
    named = set(re.findall(r"^(?:rule|checkpoint) (\w+):", rules, re.MULTILINE)) | {"all"}
    assert set(given.targets) <= named, given.targets
    for profile in re.findall(r"--profile (\S+)", " ".join(words)):
        assert (ROOT / profile / "config.yaml").is_file()
    for path in given.configfile or []:
        mine = Path("config/own.yaml") if path.name == "mine.yaml" else path
        load_config(ROOT / mine, check_files=False)


def check_python(words: list[str]) -> None:
    assert words[0] == "-m", words
    module, rest = words[1], words[2:]
    if module == "pipeline_lib":
        if rest:
            make_parser().parse_args(rest)
        return
    places = [ROOT / base / module.replace(".", "/") for base in ("", "tests")]
    sources = [p for base in places for p in (base.with_suffix(".py"), base / "__main__.py")]
    source = next((path for path in sources if path.is_file()), None)
    assert source is not None, f"there is no module {module}"
    text = source.read_text("utf-8")
    for flag in (word for word in rest if word.startswith("--")):
        assert f'"{flag}"' in text, f"{module} has no option {flag}"


def check_cp(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file(), words


def check_pytest(words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words if not word.startswith("-")), words


CHECKS = {
    "make": check_make, "snakemake": check_snakemake, "python": check_python, "cp": check_cp,
    "pytest": check_pytest,
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words)[:60])
def test_every_command_is_valid_as_it_stands(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = command.words
    for name in ("WEIGHTS", "IMAGES", "VIT_ATLAS_PHOTOS"):
        monkeypatch.setenv(name, "somewhere")
    if program in CHECKS:
        CHECKS[program](words)
    else:
        assert program in NOT_RUN, f"{command.place}: nobody checks {' '.join(command.words)!r}"


ANSWERED = [
    command
    for command in COMMANDS
    if command.words[:3] == ("python", "-m", "pipeline_lib")
    and len(command.words) > 3
    and not any(word.startswith("timm:swin") for word in command.words)  # fetches weights
]


@pytest.mark.parametrize("command", ANSWERED, ids=lambda command: " ".join(command.words[3:])[:60])
def test_the_command_line_answers_as_the_pages_say(
    command: Command, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = stand_in(" ".join(command.words[3:])).split(" ")
    assert main(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()
    for place, word in enumerate(words):
        if word == "--out":
            assert (workplace / words[place + 1]).stat().st_size > 100


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_runs_as_it_stands(block: Block, workplace: Path) -> None:
    ensure_torchvision()
    import open_clip
    import timm

    given: dict[str, Any] = {
        "images": torch.rand(1, 3, 224, 224), "texts": torch.randn(2, 768),
        "timm": timm, "open_clip": open_clip,
    }  # fmt: skip
    exec(compile(stand_in(block.text), block.place, "exec"), given)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_parts_of_a_configuration_fit_the_template(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WEIGHTS", "IMAGES"):
        monkeypatch.setenv(name, "somewhere")
    content = yaml.safe_load((ROOT / "config/own.yaml").read_text("utf-8"))
    for section, part in yaml.safe_load(block.text).items():
        if section in ("datasets", "models", "applications"):
            content[section] |= part
        else:
            content[section] = part
    load_config(content, check_files=False)


def test_the_tutorial_plans_a_run_from_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        photograph(tmp_path / "pictures" / f"kind{number % 2}" / f"{number}.png", number)
    monkeypatch.setenv("IMAGES", "pictures")
    text = (ROOT / "config/own.yaml").read_text("utf-8")
    (tmp_path / "config.yaml").write_text(text.replace("resources/", "${project}/resources/"))
    assert {"manifest", "bases"} <= rules_of(plan(tmp_path))
    assert rules_of(plan(tmp_path, "estimate")) == {"manifest", "bases", "estimate"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor and other.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.MULTILINE)
            assert anchor in {_anchor(head) for head in heads}, f"{page.name} links to {target}"


def _anchor(head: str) -> str:
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
