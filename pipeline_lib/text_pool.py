"""Pools of texts that describe images: composed from word lists, written, read and checked.

A pool is a UTF-8 file with `category<TAB>text` on each line, or with a text alone on each: then all
texts are of one category, the file's name. Lines that start with `#` are comments.
`python -m pipeline_lib.text_pool` composes the pools that ship with the project from the word lists
beside them. The names and definitions of ImageNet's classes are read from timm.
"""

from __future__ import annotations

import argparse
import codecs
import hashlib
import itertools
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.artifacts import atomic_path
from pipeline_lib.config import IMAGENET_POOLS
from pipeline_lib.errors import DataError

log = logging.getLogger(__name__)

#: Folder of the pools that ship with the project.
POOLS = Path(__file__).resolve().parents[1] / "resources" / "text_pools"
#: Pools composed by this module: file and the word lists it is composed from.
COMPOSED: Mapping[str, str] = {"general.tsv": "general.yaml", "world.txt": "world.yaml"}
#: File that lists size and hash of the composed pools.
INDEX = "pools.json"

# Words that begin with a vowel's letter and a consonant's sound, or the other way round.
_TAKES_A = re.compile(r"(?:uni|use|eu|one|ewe|u[a-z]?k)")
_TAKES_AN = re.compile(r"(?:hour|honest|heir|x-ray|[FHLMNRSX]\b)")

#: Marks at the beginning of files, the longest first: one of UTF-32 begins as one of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

# Between two signs they decide how these are written: in Persian words, in sequences of emoji.
_JOINER = re.compile(r"(?<=\S)[\u200c\u200d](?=\S)")

_MAX_SHOWN = 10


@dataclass(frozen=True)
class TextPool:
    """Texts with a category each, and the hash of both.

    >>> TextPool(("a red thing",), ("colour",)).sha256[:8]
    '08b2162d'
    """

    texts: tuple[str, ...]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """Hash of categories and texts in their order, whatever file they came from."""
        return hashlib.sha256("".join(self.lines()).encode()).hexdigest()

    def lines(self) -> Iterator[str]:
        """The lines of the pool's file."""
        for category, text in zip(self.categories, self.texts, strict=True):
            yield f"{category}\t{text}\n"


def read_pool(path: str | Path) -> TextPool:
    """The pool in a file, cleaned: spaces at the ends and doubled spaces are dropped.

    Where no line has a tab, every line is a text, and its category is the file's name without
    ending; a warning says so.

    Raises
    ------
    DataError
        The file is missing, not UTF-8 or empty, or has lines without category or text, with
        signs that are not seen or were lost, or with a text that stands there already (in upper or
        lower case). The message lists the first such lines.
    """
    path = Path(path)
    texts: list[str] = []
    categories: list[str] = []
    seen: dict[str, int] = {}
    problems: list[str] = []
    lines = {
        number: line
        for number, line in enumerate(read_lines(path), start=1)
        if line.strip() and not line.startswith("#")
    }
    plain = not any("\t" in line for line in lines.values())
    for number, line in lines.items():
        given, tab, said = (path.stem, "\t", line) if plain else line.partition("\t")
        category, text = clean(given), clean(said)
        if not tab or not category or not text:
            problems.append(f"line {number}: {line[:40]!r} is not category<TAB>text")
        elif complaint := _unfit(given) or _unfit(said):
            problems.append(f"line {number}: {text[:40]!r} {complaint}")
        elif text.casefold() in seen:
            problems.append(f"line {number}: {text!r} stands in line {seen[text.casefold()]} too")
        else:
            seen[text.casefold()] = number
            texts.append(text)
            categories.append(category)
    if not texts and not problems:
        problems.append("it has no texts")
    raise_problems(f"text pool {path}", problems)
    if plain:
        log.warning(
            "text pool %s: no line has a tab, so every line is a text of one category, %r: from it "
            "alone no head gets a role. If there are to be categories, write category<TAB>text",
            path,
            path.stem,
        )
    return TextPool(tuple(texts), tuple(categories))


def _unfit(text: str) -> str:
    """What is wrong with the signs of a text; '' where nothing is."""
    joined = {match.start() for match in _JOINER.finditer(text)}
    for place, sign in enumerate(text):
        if sign == "\ufffd":
            complaint = "which stands for a character that was lost; write it anew"
        elif unicodedata.category(sign) in ("Cc", "Cf", "Co") and place not in joined:
            complaint = "which is not seen; delete it"
        else:
            continue
        name = f"U+{ord(sign):04X} {unicodedata.name(sign, '')}".strip()
        return f"has {name}, {complaint}"
    return ""


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, without line ends and byte order mark.

    Raises
    ------
    DataError
        The file cannot be read, or is in another encoding; the message names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise DataError(
                f"{path} is not UTF-8: its first bytes {mark.hex(' ')} are the mark of {encoding}; "
                f"save the file as UTF-8, for example with iconv -f {encoding} -t UTF-8"
            )
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not UTF-8: line {line} has the byte 0x{content[error.start]:02x}; save the "
            "file as UTF-8, for example with iconv -f ISO-8859-1 -t UTF-8 (or from whatever "
            "encoding it has)"
        ) from error


def clean(text: str) -> str:
    """Text in composed Unicode form, without spaces at its ends; any space within is one blank."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def raise_problems(where: str, problems: Sequence[str]) -> None:
    """Raise one `DataError` that lists the problems of one input, if there are any."""
    if problems:
        shown = [*problems[:_MAX_SHOWN]]
        if len(problems) > _MAX_SHOWN:
            shown.append(f"… and {len(problems) - _MAX_SHOWN} more")
        raise DataError(f"{where}:\n  - " + "\n  - ".join(shown))


def read_pools(sources: str | Path | Sequence[str | Path]) -> TextPool:
    """One pool of several: files, or names in `IMAGENET_POOLS`.

    A text that an earlier pool has already is left out.

    Raises
    ------
    DataError
        As `read_pool`; or there are no sources.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise DataError(f"no text pool is named; name files, or {' or '.join(IMAGENET_POOLS)}")
    texts: dict[str, tuple[str, str]] = {}
    for source in sources:
        pool = imagenet_pool(str(source)) if str(source) in IMAGENET_POOLS else read_pool(source)
        for category, text in zip(pool.categories, pool.texts, strict=True):
            texts.setdefault(text.casefold(), (category, text))
        log.info("%s: %d texts, %d in all", source, len(pool), len(texts))
    categories, chosen = zip(*texts.values(), strict=True)
    return TextPool(chosen, categories)


def imagenet_pool(name: str) -> TextPool:
    """Names (`imagenet:lemmas`) or definitions of ImageNet's classes, as timm carries them.

    A name that two classes share stands once.
    """
    ensure_torchvision()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    texts: dict[str, str] = {}
    for label in info.label_names():
        lemmas, _, definition = info.label_name_to_description(label, detailed=True).partition(": ")
        for text in lemmas.split(", ") if name == IMAGENET_POOLS[0] else [definition]:
            texts.setdefault(clean(text).casefold(), clean(text))
    chosen = tuple(text for text in texts.values() if text)
    return TextPool(chosen, (f"ImageNet {name.partition(':')[2]}",) * len(chosen))


# Random texts


def random_texts(pool: TextPool, seed: int) -> tuple[str, ...]:
    """As many texts as a pool has, of as many words each, drawn at random from all its words.

    They are what the pool's texts are (their words, how frequent and how many these are) without
    what was written: what the pool explains beyond them is said by its texts, and not by any texts
    of its words. None is a text of the pool or stands twice: a draw that does gets one more word.

    >>> random_texts(TextPool(("a red cup", "one tree"), ("colour", "plant")), seed=0)
    ('tree one cup', 'red red')
    """
    generator = np.random.default_rng(seed)
    words = np.array([word for text in pool.texts for word in text.split()])
    known = {text.casefold() for text in pool.texts}
    drawn = []
    for text in pool.texts:
        chosen = generator.choice(words, size=len(text.split())).tolist()
        while (made := " ".join(chosen)).casefold() in known:
            chosen += generator.choice(words, size=1).tolist()
        known.add(made.casefold())
        drawn.append(made)
    return tuple(drawn)


# Composing


def compose(words: Mapping[str, Sequence[Mapping[str, Any]]]) -> TextPool:
    """Pool made of word lists: for each category, groups of templates and words.

    A group gives every combination of one of its `templates` with its words; with `take`, the
    number of them that it names, spread over all. A text that an earlier group gave already is
    left out. `a(n)` becomes `a` or `an`.

    >>> compose({"colour": [{"templates": ["a(n) {x} cup"], "x": ["orange", "red"]}]}).texts
    ('an orange cup', 'a red cup')
    """
    texts: dict[str, tuple[str, str]] = {}
    for category, groups in words.items():
        for group in groups:
            for text in _combinations(category, group):
                texts.setdefault(text.casefold(), (category, text))
    categories, composed = zip(*texts.values(), strict=True)
    return TextPool(composed, categories)


def _combinations(category: str, group: Mapping[str, Any]) -> list[str]:
    texts = []
    for template in group["templates"]:
        names = re.findall(r"\{(\w+)\}", template)
        for words in itertools.product(*(group[name] for name in names)):
            texts.append(articles(template.format(**dict(zip(names, words, strict=True)))))
    take = group.get("take", len(texts))
    if take > len(texts):
        raise DataError(f"category {category!r}: {take} texts are to be taken of {len(texts)}")
    chosen = set(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:take])
    return [text for text in texts if text in chosen]


def articles(text: str) -> str:
    """Text with each `a(n)` as the next word wants it.

    >>> articles("a(n) hour with a(n) unicorn and a(n) owl")
    'an hour with a unicorn and an owl'
    """

    def article(match: re.Match[str]) -> str:
        word = match.group(1)
        vowel = word[0].lower() in "aeiou"
        vowel = (vowel and not _TAKES_A.match(word)) or bool(_TAKES_AN.match(word))
        return f"{'an' if vowel else 'a'} {word}"

    return re.sub(r"a\(n\) (\S+)", article, text)


def compose_all(folder: Path = POOLS) -> dict[str, dict[str, Any]]:
    """Write the composed pools and their index into `folder`; the same bytes every time."""
    index: dict[str, dict[str, Any]] = {}
    for name, words in COMPOSED.items():
        pool = compose(yaml.safe_load((POOLS / "words" / words).read_text("utf-8")))
        head = f"# Composed from words/{words} by python -m pipeline_lib.text_pool; do not edit.\n"
        with atomic_path(folder / name) as beside:
            beside.write_text(head + "".join(pool.lines()), "utf-8")
        index[name] = {
            "texts": len(pool),
            "sha256": pool.sha256,
            "categories": dict(sorted(Counter(pool.categories).items())),
        }
        log.info("%s: %d texts in %d categories", name, len(pool), len(set(pool.categories)))
    with atomic_path(folder / INDEX) as beside:
        beside.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return index


def main(arguments: Sequence[str] | None = None) -> None:
    """Compose the pools from their word lists."""
    parser = argparse.ArgumentParser(prog="python -m pipeline_lib.text_pool", description=__doc__)
    parser.add_argument("--folder", type=Path, default=POOLS, help="folder to write to")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    compose_all(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    main()
