"""What stands in the documentation: blocks of code, and commands in them and in the text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Beginnings of code within a sentence that is a command and no name.
_INLINE = re.compile(r"`((?:python -m|snakemake|make|pip|conda)(?: [^`\n]*)?)`")
_ASSIGNMENT = re.compile(r"\w+=")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line it starts in, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a block or a sentence: the words of the shell, without assignments."""

    place: str
    words: tuple[str, ...]


def blocks(language: str | None = None) -> list[Block]:
    """All blocks of all pages, or those of one language."""
    found = [block for page in PAGES for block in _blocks(page)]
    return [block for block in found if language in (None, block.language)]


def _blocks(page: Path) -> Iterator[Block]:
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            if opened is None:
                opened, lines = (number, line[3:].strip()), []
            else:
                yield Block(page, *opened, "\n".join(lines))
                opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page}: a block is not closed"


def tables() -> list[list[str]]:
    """Every table of the pages: its lines, up to the blank line that ends it."""
    found: list[list[str]] = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        parts = re.findall(r"^\|.*?(?=\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        found += [part.splitlines() for part in parts]
    return found


def commands() -> list[Command]:
    """Every command of the documentation once, with the first place where it stands."""
    found = [
        command
        for block in blocks()
        if block.language in ("bash", "console")
        for command in _commands(block.text, block.place)
    ]
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for match in _INLINE.finditer(text):
            found += _commands(match.group(1), str(page.relative_to(ROOT)))
    return list({command.words: command for command in reversed(found)}.values())[::-1]


def _commands(text: str, place: str) -> Iterator[Command]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in ("&&", "|", ";"):
                while words and _ASSIGNMENT.match(words[0]):
                    words.pop(0)
                if words:
                    yield Command(place, tuple(words))
                words = []
            else:
                words.append(word)
