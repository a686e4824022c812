"""Embeddings in CLIP space of the texts a run speaks in (those of images: `image_features`).

Concepts and class names are averaged over prompt templates; texts of the pool are taken as they
stand. Where only text embeddings are at hand, texts are looked up by name instead of encoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.text_pool import TextPool, clean, raise_problems, read_lines

Encoder = Callable[[Sequence[str]], Float[Tensor, "k e"]]

#: Sets of templates that open_clip carries, by the name used in a file of templates.
NAMED_TEMPLATES = ("openai_imagenet", "simple_imagenet")

_WNID = re.compile(r"n\d{8}")


# Templates


@dataclass(frozen=True)
class Templates:
    """Prompt templates with `{}` for the text: general ones, and those of single features."""

    general: tuple[str, ...] = ("{}",)
    by_feature: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, feature: str) -> tuple[str, ...]:
        """Templates for the texts of a feature."""
        return self.by_feature.get(feature, self.general)

    @property
    def plain(self) -> bool:
        """Whether texts are taken as they stand."""
        return self.general == ("{}",) and not self.by_feature


def read_templates(source: str | Path | None) -> Templates:
    """Templates in a UTF-8 file, or by a name that open_clip knows.

    A line is a template, or `feature<TAB>template` for one feature's texts only, or `@NAME` for all
    templates of that name in open_clip; lines that start with `#` are comments.

    Parameters
    ----------
    source
        Path, or one of `NAMED_TEMPLATES`; `None` for the bare text.

    Raises
    ------
    DataError
        The file cannot be read, or a line is no template, stands twice or names unknown templates.
    """
    if source is None:
        return Templates()
    if str(source) in NAMED_TEMPLATES:
        return Templates(_named_templates(str(source)))
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    for number, line in enumerate(read_lines(Path(source)), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        feature, tab, template = line.partition("\t")
        feature, template = (clean(feature), clean(template)) if tab else ("", clean(line))
        known = found.setdefault(feature, [])
        if template.startswith("@") and template[1:] in NAMED_TEMPLATES:
            known += _named_templates(template[1:])
        elif template.startswith("@"):
            valid = close_matches(template[1:], NAMED_TEMPLATES)
            problems.append(f"line {number}: no templates are named {template[1:]!r}; {valid}")
        elif re.findall(r"[{}]", template) != ["{", "}"] or "{}" not in template:
            problems.append(f"line {number}: {template!r} must hold {{}} once, for the text")
        elif template in known:
            problems.append(f"line {number}: {template!r} stands twice")
        else:
            known.append(template)
    if not found and not problems:
        problems.append("it has no templates")
    raise_problems(f"templates {source}", problems)
    general = tuple(found.pop("", ["{}"]))
    return Templates(general, {feature: tuple(lines) for feature, lines in found.items()})


def _named_templates(name: str) -> tuple[str, ...]:
    ensure_torchvision()
    from open_clip import zero_shot_metadata

    functions = getattr(zero_shot_metadata, f"{name.upper()}_TEMPLATES")
    return tuple(function("{}") for function in functions)


def encode_prompts(
    encode: Encoder, texts: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "k e"]:
    """Unit embeddings of texts, each the mean over templates of its unit embeddings."""
    prompts = [template.format(text) for text in texts for template in templates]
    embeddings = torch.nn.functional.normalize(encode(prompts).float(), dim=-1)
    means = embeddings.view(len(texts), len(templates), -1).mean(dim=1)
    return torch.nn.functional.normalize(means, dim=-1)


# The table of a space


def text_table(
    encode: Encoder,
    *,
    concepts: Mapping[str, Sequence[str]],
    pool: TextPool,
    classes: Mapping[str, str] | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    captions: Sequence[str] = (),
    random: Sequence[str] = (),
    templates: Templates | None = None,
) -> pd.DataFrame:
    """Rows of table `text_features` for one CLIP space.

    Parameters
    ----------
    encode
        Gives embeddings of texts: a CLIP's, or `ReferenceTexts.encode_text`.
    concepts
        Feature to its descriptors.
    pool
        Texts that label components; encoded without templates.
    classes
        Label of a data set to the words that are encoded for it.
    words
        Purpose (such as spurious or core) to further words.
    captions
        Captions of images; encoded without templates.
    random
        Random texts to hold the pool against; encoded without templates.
    templates
        Templates; a class or word that is a descriptor of a feature takes that feature's.

    Raises
    ------
    DataError
        A feature has no descriptors or one twice, or an embedding is not finite; all such problems
        in one message.
    """
    templates = templates or Templates()
    problems = [f"feature {name!r} has no descriptors" for name, d in concepts.items() if not d]
    for name, descriptors in concepts.items():
        twice = sorted({text for text in descriptors if list(descriptors).count(text) > 1})
        problems += [f"feature {name!r} has {text!r} twice" for text in twice]
    raise_problems("concepts", problems)
    feature_of = {text: name for name, descriptors in concepts.items() for text in descriptors}
    rows: list[tuple[str, str, str, str, tuple[str, ...]]] = []
    for name, descriptors in concepts.items():
        rows += [("concept", name, text, text, templates.of(name)) for text in descriptors]
    for label, phrase in (classes or {}).items():
        rows.append(("class", "", label, phrase, templates.of(feature_of.get(label, ""))))
    for purpose, texts in (words or {}).items():
        for text in texts:
            rows.append(("word", purpose, text, text, templates.of(feature_of.get(text, ""))))
    bare = ("{}",)
    for category, text in zip(pool.categories, pool.texts, strict=True):
        rows.append(("pool", category, text, text, bare))
    rows += [("random", "", text, text, bare) for text in random]
    rows += [("caption", "", text, text, bare) for text in dict.fromkeys(captions)]
    frame = pd.DataFrame([row[:3] for row in rows], columns=["use", "feature", "text"])
    embeddings = _encode_rows(encode, [row[3:] for row in rows])
    if not np.isfinite(embeddings).all():
        bad = frame["text"][~np.isfinite(embeddings).all(axis=1)].tolist()
        raise DataError(f"the reference gives embeddings that are not finite, first of {bad[0]!r}")
    frame["embedding"] = list(embeddings)
    return frame


def _encode_rows(
    encode: Encoder, rows: Sequence[tuple[str, tuple[str, ...]]]
) -> Float[np.ndarray, "k e"]:
    """Embeddings of pairs of text and templates; one call for each set of templates."""
    found: dict[int, np.ndarray] = {}
    for templates in dict.fromkeys(templates for _, templates in rows):
        places = [place for place, row in enumerate(rows) if row[1] == templates]
        encoded = encode_prompts(encode, [rows[place][0] for place in places], templates)
        found |= dict(zip(places, encoded.cpu().numpy(), strict=True))
    return np.stack([found[place] for place in range(len(rows))])


def embeddings_of(
    table: pd.DataFrame, use: str, feature: str | None = None
) -> Float[Tensor, "k e"]:
    """Embeddings of the rows of table `text_features` with this use (and feature)."""
    chosen = table[table["use"] == use]
    if feature is not None:
        chosen = chosen[chosen["feature"] == feature]
    if chosen.empty:
        what = use if feature is None else f"{use} of {feature!r}"
        raise DataError(f"the text features hold no text for {what}; run snakemake to make them")
    return torch.tensor(np.stack(chosen["embedding"].to_list()), dtype=torch.float32)


def concept_embeddings(table: pd.DataFrame) -> dict[str, Float[Tensor, "k e"]]:
    """Feature to the embeddings of its descriptors, from table `text_features`."""
    features = table.loc[table["use"] == "concept", "feature"]
    return {name: embeddings_of(table, "concept", name) for name in dict.fromkeys(features)}


def text_targets(
    table: pd.DataFrame, images: pd.DataFrame, target: Literal["label_text", "caption_text"]
) -> Float[Tensor, "n e"]:
    """Text embedding of each image's label or caption: the targets of a map fitted to texts.

    Parameters
    ----------
    table
        Table `text_features`.
    images
        Rows of table `manifest`.
    target
        Which of the two.

    Raises
    ------
    DataError
        Images without a label or caption, or texts without an embedding.
    """
    column = target.removesuffix("_text")
    use = {"label": "class", "caption": "caption"}[column]
    known = table[table["use"] == use].drop_duplicates("text").set_index("text")["embedding"]
    missing = int(images[column].isna().sum())
    unknown = sorted(set(images[column].dropna()) - set(known.index))
    problems = [f"{missing} images have no {column}"] if missing else []
    problems += [f"{column} {name!r} has no text embedding" for name in unknown]
    raise_problems(f"maps.target: {target}", problems)
    return torch.tensor(np.stack(known[images[column]].to_list()), dtype=torch.float32)


def class_phrases(labels: Iterable[str]) -> dict[str, str]:
    """Label to the words to encode for it: itself, or for an ImageNet id its first lemma.

    >>> class_phrases(["landbird"])
    {'landbird': 'landbird'}
    """
    phrases = {str(label): str(label) for label in labels}
    if any(_WNID.fullmatch(label) for label in phrases):
        ensure_torchvision()
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet22k")
        known = set(info.label_names())
        for label in phrases:
            if label in known:
                phrases[label] = info.label_name_to_description(label).split(",")[0]
    return phrases


# A reference of which only text embeddings are at hand


@dataclass(frozen=True)
class ReferenceTexts:
    """Named text embeddings.

    Attributes
    ----------
    names
        Name of each embedding, without doubles.
    embeddings
        Unit vectors `[k, e]`.
    aliases
        Further name to index: the ids of a file of `wnid words`, and words that stand once.
    ambiguous
        Words that stand for several ids.
    """

    names: tuple[str, ...]
    embeddings: Float[Tensor, "k e"]
    aliases: Mapping[str, int]
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "m e"]:
        """Embeddings of texts that are names.

        Raises
        ------
        DataError
            Texts that are no names, or stand for several; all of them in one message.
        """
        problems = []
        for text in dict.fromkeys(texts):
            if text in self.ambiguous:
                ids = ", ".join(self.ambiguous[text])
                problems.append(f"{text!r} is the name of several: use one of {ids}")
            elif text not in self.aliases:
                near = close_matches(text, self.aliases)
                problems.append(f"{text!r} is none of the {len(self.names)} names; {near}")
        raise_problems("the reference has embeddings of its own names only", problems)
        return self.embeddings[[self.aliases[text] for text in texts]]

    def pool(self) -> TextPool:
        """All names as a pool of one category."""
        return TextPool(self.names, ("name",) * len(self.names))


def read_reference_texts(
    embeddings: str | Path, names: str | Path, column: str | None = None
) -> ReferenceTexts:
    """Named text embeddings from a `.npy` file and a file of names.

    Parameters
    ----------
    embeddings
        Array `[k, e]` or `[e, k]` of finite vectors, brought to unit length; the axis of the names
        is the one as long as there are names (the first where both are).
    names
        Text file with one name a line; or with `wnid words` on each line, where both can be asked
        for and words that stand twice are told apart by their id; or a CSV or Parquet table.
    column
        Column of the names in a table.

    Raises
    ------
    DataError
        A file cannot be read, names stand twice, or shapes do not fit.
    """
    lines = _read_names(Path(names), column)
    vectors = _read_embeddings(Path(embeddings), len(lines), names)
    if lines and all(re.match(r"n\d{8}\s+\S", line) for line in lines):
        ids, words = zip(*(line.split(None, 1) for line in lines), strict=True)
        return _with_ids(ids, words, vectors)
    twice = sorted({line for line in lines if lines.count(line) > 1})
    raise_problems(
        f"names {names}", [f"{name!r} stands twice; names must differ" for name in twice]
    )
    return ReferenceTexts(tuple(lines), vectors, {name: i for i, name in enumerate(lines)})


def _with_ids(
    ids: Sequence[str], words: Sequence[str], vectors: Float[Tensor, "k e"]
) -> ReferenceTexts:
    aliases = {name: i for i, name in enumerate(ids)}
    ambiguous: dict[str, tuple[str, ...]] = {}
    names = []
    for i, (wnid, word) in enumerate(zip(ids, words, strict=True)):
        same = tuple(other for other, text in zip(ids, words, strict=True) if text == word)
        names.append(word if len(same) == 1 else f"{word} ({wnid})")
        aliases[names[-1]] = i
        if len(same) > 1:
            ambiguous[word] = same
    return ReferenceTexts(tuple(names), vectors, aliases, ambiguous)


def _read_names(path: Path, column: str | None) -> list[str]:
    if column is None:
        return [clean(line) for line in read_lines(path) if line.strip()]
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"names {path} cannot be read as a table: {error}") from error
    if column not in frame:
        raise DataError(f"names {path} has no column {column!r}; {close_matches(column, frame)}")
    return [clean(str(name)) for name in frame[column]]


def _read_embeddings(path: Path, count: int, names: str | Path) -> Float[Tensor, "k e"]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"text embeddings {path} cannot be read as .npy: {error}") from error
    if array.ndim != 2 or count not in array.shape:
        raise DataError(
            f"text embeddings {path} have shape {array.shape}, but {names} has {count} names; the "
            "array must be [names, width] or [width, names]"
        )
    rows = array if array.shape[0] == count else array.T
    vectors = torch.tensor(np.ascontiguousarray(rows), dtype=torch.float32)
    if not torch.isfinite(vectors).all() or not (vectors.norm(dim=1) > 0).all():
        raise DataError(f"text embeddings {path} hold NaN, infinity or zero vectors")
    return torch.nn.functional.normalize(vectors, dim=-1)
