"""The small byte-pair vocabulary of the demo CLIPs, in the format of open_clip's tokenizer."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.world.captions import all_words

VOCABULARY = "bpe_simple_vocab.txt.gz"
HEADER = "#version: 0.2"
BYTES, SPECIAL = 256, 2

Pair = tuple[str, str]


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """Byte-pair merges after which each of the words is one token.

    The most frequent pair is merged first, the alphabetically first one among equals.

    Examples
    --------
    >>> learn_merges(["at", "a"])
    [('a', 't</w>')]
    """
    pieces = {word: (*word[:-1], f"{word[-1]}</w>") for word in sorted(set(words))}
    merges = []
    while any(len(parts) > 1 for parts in pieces.values()):
        counts = Counter(pair for parts in pieces.values() for pair in pairwise(parts))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
    return merges


def _merge(parts: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)


def vocabulary_size(merges: list[Pair]) -> int:
    """Number of tokens: all bytes inside and at the end of a word, merges, start and end."""
    return 2 * BYTES + len(merges) + SPECIAL


def write_vocabulary(path: Path) -> int:
    """Write the merges for all words of the captions; returns the number of tokens.

    The file has the same bytes each time.
    """
    merges = learn_merges(all_words())
    text = "\n".join([HEADER, *(" ".join(pair) for pair in merges)])
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write(text.encode())
    return vocabulary_size(merges)


def load_tokenizer(folder: Path, context_length: int) -> Callable[[list[str]], Tensor]:
    """open_clip's own tokenizer with the vocabulary of a model folder."""
    ensure_torchvision()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(bpe_path=str(folder / VOCABULARY), context_length=context_length)
