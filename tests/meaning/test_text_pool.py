"""Text pools: what ships is what is composed, and bad files get a clear error."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.config import IMAGENET_POOLS
from pipeline_lib.errors import DataError
from pipeline_lib.text_pool import (
    COMPOSED,
    INDEX,
    POOLS,
    TextPool,
    articles,
    clean,
    compose,
    compose_all,
    imagenet_pool,
    main,
    random_texts,
    read_pool,
    read_pools,
)
from pipeline_lib.world.captions import all_words
from pipeline_lib.world.factors import FACTORS


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "pool.tsv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("name", COMPOSED)
def test_shipped_pools_are_what_the_word_lists_give(tmp_path, name) -> None:
    main(["--folder", str(tmp_path)])
    assert (tmp_path / name).read_bytes() == (POOLS / name).read_bytes()
    assert (tmp_path / INDEX).read_bytes() == (POOLS / INDEX).read_bytes()


@pytest.mark.parametrize("name", COMPOSED)
def test_shipped_pools_are_clean_and_match_their_hash(name) -> None:
    pool = read_pool(POOLS / name)
    entry = json.loads((POOLS / INDEX).read_text())[name]
    assert (len(pool), pool.sha256) == (entry["texts"], entry["sha256"])
    assert Counter(pool.categories) == entry["categories"]
    assert not [text for text in pool.texts if "(n)" in text or "{" in text]


def test_general_pool_is_large_and_broad() -> None:
    pool = read_pool(POOLS / "general.tsv")
    assert len(pool) >= 3000
    assert len(set(pool.categories)) >= 30
    assert max(Counter(pool.categories).values()) < 0.15 * len(pool)


def test_world_pool_speaks_of_every_value_and_of_other_things() -> None:
    pool = read_pool(POOLS / "world.txt")
    known = set(all_words()) | {"something"}
    for factor, values in FACTORS.items():
        texts = [t for t, c in zip(pool.texts, pool.categories, strict=True) if c == factor]
        words = {word for text in texts for word in text.split()}
        assert words <= known
        if factor != "count":
            assert set(values) <= words
    distractors = [c for c in pool.categories if c in ("animal", "food", "vehicle", "style")]
    assert len(distractors) > 30


def test_compose_combines_drops_doubles_and_takes() -> None:
    group = {"templates": ["{x} {y}", "a(n) {x}"], "x": ["red", "red", "old"], "y": ["cup", "hat"]}
    assert compose({"c": [group]}).texts == (
        *("red cup", "red hat", "old cup", "old hat"),
        *("a red", "an old"),
    )
    taken = compose({"c": [{"templates": ["{x}"], "x": list("abcdefgh"), "take": 3}]}).texts
    assert len(taken) == 3
    assert list(taken) == sorted(taken)
    with pytest.raises(DataError, match="9 texts are to be taken of 2"):
        compose({"c": [{"templates": ["{x}"], "x": ["a", "b"], "take": 9}]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a(n) uniform", "a uniform"),
        ("a(n) umbrella", "an umbrella"),
        ("a(n) x-ray", "an x-ray"),
        ("a(n) hour", "an hour"),
        ("a(n) house", "a house"),
        ("a(n) S", "an S"),
    ],
)
def test_articles(text: str, expected: str) -> None:
    assert articles(text) == expected


def test_composing_again_changes_nothing(tmp_path) -> None:
    assert compose_all(tmp_path) == compose_all(tmp_path)


def test_reading_cleans(tmp_path) -> None:
    path = write(tmp_path, "﻿# comment\n\ncolour \t  a  red   thing \r\nfood\tcafé\n")
    pool = read_pool(path)
    assert pool.texts == ("a red thing", "café")
    assert pool.categories == ("colour", "food")


def test_hash_depends_on_texts_and_categories_not_on_the_file(tmp_path) -> None:
    first = read_pool(write(tmp_path, "a\tone\nb\ttwo\n")).sha256
    assert read_pool(write(tmp_path, "# x\na\tone \nb\ttwo")).sha256 == first
    assert read_pool(write(tmp_path, "a\tone\na\ttwo\n")).sha256 != first


def test_all_problems_of_a_pool_come_in_one_message(tmp_path) -> None:
    path = write(tmp_path, "colour\tred\nno category\n\tempty\nshape\tRed\nshape\t\nx\ta\x07b\n")
    with pytest.raises(DataError) as caught:
        read_pool(path)
    message = str(caught.value)
    for expected in (
        "line 2: 'no category' is not category<TAB>text",
        "line 3",
        "line 4: 'Red' stands in line 1 too",
        "line 5",
        "line 6: 'a\\x07b' has U+0007, which is not seen; delete it",
    ):
        assert expected in message


def test_many_problems_are_cut_short(tmp_path) -> None:
    with pytest.raises(DataError, match="and 20 more"):
        read_pool(write(tmp_path, "a\tfirst\n" + "bad\n" * 30))


def test_a_text_a_line_is_a_pool_of_one_category(tmp_path) -> None:
    path = tmp_path / "birds.txt"
    path.write_text("# own\na heron\n\n a  crow \n", "utf-8")
    pool = read_pool(path)
    assert pool.texts == ("a heron", "a crow")
    assert pool.categories == ("birds", "birds")
    with pytest.raises(DataError, match="'a Crow' stands in line 1 too"):
        read_pool(write(tmp_path, "a crow\na Crow\n"))


def test_a_pool_that_lost_its_tabs_is_said_to_have_one_category(tmp_path, caplog) -> None:
    path = write(tmp_path, "colour    a red cup\nshape    a star\n")
    read_pool(path)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"text pool {path}" in warning.message and f"one category, {path.stem!r}" in (
        warning.message
    )
    caplog.clear()
    read_pool(write(tmp_path, "colour\ta red cup\nshape\ta star\n"))
    assert not caplog.records


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u3000", " \u00a0 "])
def test_other_spaces_make_no_other_text(tmp_path, space: str) -> None:
    path = write(tmp_path, f"colour\ta red cup\ncolour\ta{space}red cup\n")
    with pytest.raises(DataError, match="line 2: 'a red cup' stands in line 1 too"):
        read_pool(path)


@pytest.mark.parametrize(
    ("sign", "complaint"),
    [
        ("\u200b", "U\\+200B ZERO WIDTH SPACE, which is not seen"),
        ("\u00ad", "U\\+00AD SOFT HYPHEN, which is not seen"),
        ("\ufeff", "U\\+FEFF ZERO WIDTH NO-BREAK SPACE, which is not seen"),
        ("\ufffd", "U\\+FFFD REPLACEMENT CHARACTER, which stands for a character that was lost"),
        ("\t", "U\\+0009, which is not seen"),
        ("\0", "U\\+0000, which is not seen"),
    ],
)
def test_signs_that_are_not_seen_or_were_lost_are_refused(tmp_path, sign, complaint) -> None:
    with pytest.raises(DataError, match=f"line 2: .* has {complaint}"):
        read_pool(write(tmp_path, f"colour\ta red cup\ncolour\ta red{sign} cup\n"))


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # a Persian word with a non-joiner
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family: three emoji, joined
        "a face \U0001faea",  # an emoji of 2025, which a table of signs may not know yet
    ],
)
def test_signs_that_make_a_word_stay(tmp_path, text: str) -> None:
    assert read_pool(write(tmp_path, f"word\t{text}\n")).texts == (text,)


@pytest.mark.parametrize("text", ["\u200ca cup", "a cup\u200d", "a \u200d cup", "a\u200c cup"])
def test_joiners_that_join_nothing_are_refused(tmp_path, text: str) -> None:
    with pytest.raises(DataError, match="which is not seen; delete it"):
        read_pool(write(tmp_path, f"thing\t{text}\n"))


@pytest.mark.parametrize("name", ["general.tsv", "world.txt"])
def test_no_shipped_pool_holds_what_is_refused_or_cleaned(name: str) -> None:
    for line in (POOLS / name).read_text("utf-8").splitlines()[1:]:
        category, text = line.split("\t")
        assert (clean(category), clean(text)) == (category, text)
        assert line.replace("\t", "").isprintable()


def test_other_encodings_are_refused(tmp_path) -> None:
    path = write(tmp_path, "food\tbread\nfood\tcafé\n", "latin-1")
    with pytest.raises(DataError, match=r"is not UTF-8: line 2 has the byte 0xe9.*ISO-8859-1"):
        read_pool(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_encodings_with_a_mark_are_named(tmp_path, encoding: str) -> None:
    path = write(tmp_path, "\ufefffood\tbread\nfood\tcafé\n", encoding)
    with pytest.raises(DataError) as caught:
        read_pool(path)
    name = encoding.upper()[:6]
    assert f"are the mark of {name}" in str(caught.value)
    assert f"iconv -f {name} -t UTF-8" in str(caught.value)
    converted = path.read_bytes().decode(name.lower())  # as that command does
    assert read_pool(write(tmp_path, converted)).texts == ("bread", "café")


def test_no_pool_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no text pool is named; name files, or imagenet:lemmas"):
        read_pools([])


def test_empty_and_missing_pools_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="no texts"):
        read_pool(write(tmp_path, "# only a comment\n"))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_pool(tmp_path / "absent.tsv")


# Random texts


def test_random_texts_are_the_pool_but_for_what_was_written() -> None:
    pool = read_pool(POOLS / "world.txt")
    texts = random_texts(pool, seed=0)
    assert texts == random_texts(pool, seed=0) != random_texts(pool, seed=1)
    assert len(texts) == len(set(texts)) == len(pool)
    assert not set(texts) & set(pool.texts)
    lengths = [(len(text.split()), len(made.split())) for text, made in zip(pool.texts, texts)]
    assert np.mean([given == made for given, made in lengths]) > 0.9
    own, drawn = (Counter(" ".join(each).split()) for each in (pool.texts, texts))
    assert set(drawn) <= set(own)
    for word, count in own.most_common(10):  # five standard deviations of a draw
        assert abs(drawn[word] - count) < 5 * count**0.5 + 0.1 * count


def test_a_pool_of_single_words_has_random_texts_too() -> None:
    pool = TextPool(("red", "Blue", "green"), ("colour",) * 3)
    texts = random_texts(pool, seed=0)
    assert len(set(texts)) == 3
    assert not {text.casefold() for text in texts} & {"red", "blue", "green"}


# Several pools, and what timm carries


def test_several_files_make_one_pool_without_doubles(tmp_path) -> None:
    first = write(tmp_path, "colour\ta red cup\nshape\ta ring\n")
    second = tmp_path / "own.tsv"
    second.write_text("own\tA Red Cup\nown\ta blue cup\n", "utf-8")
    pool = read_pools([str(first), second])
    assert pool.texts == ("a red cup", "a ring", "a blue cup")
    assert pool.categories == ("colour", "shape", "own")
    assert read_pools(str(first)) == read_pool(first)


def test_names_and_definitions_of_imagenet_come_from_timm() -> None:
    lemmas, definitions = (imagenet_pool(name) for name in IMAGENET_POOLS)
    assert {"tench", "Tinca tinca"} <= set(lemmas.texts)
    assert any(text.startswith("freshwater dace-like game fish") for text in definitions.texts)
    assert 990 <= len(definitions) <= 1000 < len(lemmas)
    assert set(lemmas.categories) == {"ImageNet lemmas"}
    both = read_pools([*IMAGENET_POOLS, POOLS / "general.tsv"])
    assert len(both) > 5000
    assert len({text.casefold() for text in both.texts}) == len(both)


def test_the_pool_of_the_repository_holds_no_definitions_of_others() -> None:
    own = set(read_pool(POOLS / "general.tsv").texts)
    assert not own & set(imagenet_pool("imagenet:definitions").texts)
