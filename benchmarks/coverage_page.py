"""The page docs/supported-models.md, from the table of the coverage command."""

from __future__ import annotations

from datetime import date
from importlib.metadata import version

import pandas as pd

_MEANING = {
    "exact": "sums exactly, and every attention module and block is a component or pools",
    "exact in single precision": "as above; the library itself computes a part in float32",
    "exact, tokens refused": "as above, but source tokens cannot be kept apart",
    "partial": "sums exactly, but the named modules have no direct path to the representation",
    "refused": "refused with the message given",
    "not made": "the library itself cannot make or run it here",
    "too slow": "not finished within the limit of time",
    "out of memory": "not finished within the limit of memory",
    "crashed": "an error that is no refusal: a fault to be mended",
    "wrong": "sums outside the bar: a fault to be mended",
    "wrong in float32": "sums outside the bar in single precision: a fault to be mended",
}


def page(frame: pd.DataFrame, *, every: bool, families: int, today: date, engine: str) -> str:
    """The page as Markdown."""
    libraries = ", ".join(f"{n} {version(n)}" for n in ("torch", "timm", "open_clip_torch"))
    command = "python -m benchmarks.coverage" + (" --all" if every else "")
    counts = frame["verdict"].value_counts()
    good = int(frame["verdict"].str.startswith("exact").sum())
    lines = [
        "# Supported models",
        "",
        f"Made on {today.isoformat()} by `{command} --docs docs/supported-models.md` with "
        f"{libraries}. One row per family: its smallest variant, made without weights, every "
        "parameter, norm statistic and relative position bias drawn at random, two images, large "
        "ones with fewer blocks (two of a row of equal ones) or at a smaller input. The bars: "
        "relative error of the sum at most 1e-10 in float64 and 1e-5 in float32. Attention is "
        "counted from the modules that run, not from the decomposition.",
        "",
        f"{good} of all {families} families, {good / families:.1%}, are exact and complete: every "
        "attention module is split into its heads or pools, and every block is a component, pools, "
        "or lies in the stem. "
        + _unchecked(families - len(frame), int((frame["engine"] != engine).sum())),
        "",
        "*Frozen on the stream* counts modules whose activation or max pooling on the residual "
        "stream is passed with its gate or its choice frozen (`docs/decomposition.md`); such "
        "models are checked on 16 random directions, since the whole of z costs a pass per column.",
        "",
        "| verdict | families | meaning |",
        "|---|---|---|",
        *(
            f"| {name} | {count} | {_MEANING.get(str(name), '')} |"
            for name, count in counts.items()
        ),
        "",
    ]
    for title, rows in (
        ("timm", frame[frame["library"] == "timm"]),
        ("open_clip", frame[frame["library"] == "open_clip"]),
    ):
        if len(rows):
            lines += [f"## {title}", "", *_table(rows), ""]
    lines += ["## Refusals, and what is incomplete", "", *_reasons(frame), ""]
    return "\n".join(lines)


def _unchecked(count: int, older: int) -> str:
    checked = f"{count} have not been checked. " if count else "None is unchecked. "
    if older:
        return checked + f"{older} rows were made by an earlier state of the decomposition's code."
    return checked + "All rows were made by one state of the decomposition's code."


def _table(rows: pd.DataFrame) -> list[str]:
    head = (
        "family (variants)", "checked with", "verdict", "error float64", "float32", "tokens",
        "heads", "MLPs", "conv.", "attention blocks + pooling / modules", "frozen on the stream",
        "read at",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows.sort_values(["module", "family"]).to_dict("records"):
        attention = (
            f"{_whole(row['attention_blocks'])} + {_whole(row['attention_pooled'])} / "
            f"{_whole(row['attention_modules'])}"
        )
        cells = (
            f"{row['family']} ({row['variants']})", f"`{row['model']}`", row["verdict"],
            _power(row["error64"]), _power(row["error32"]), _power(row["token_error"]),
            _whole(row["head"]), _whole(row["mlp"]), _whole(row["conv"]),
            attention if pd.notna(row["attention_modules"]) else "",
            _whole(row["frozen"]),
            row["readout"] if isinstance(row["readout"], str) else "",
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def _reasons(frame: pd.DataFrame) -> list[str]:
    lines = []
    for row in frame.sort_values(["library", "module", "family"]).to_dict("records"):
        for key, word in (
            ("refusal", ""),
            ("token_refusal", "tokens: "),
            ("attention_missing", "attention without a direct path: "),
            ("blocks_missing", "blocks without a component: "),
        ):
            if isinstance(row[key], str) and row[key]:
                text = row[key].replace("|", "\\|")
                lines.append(f"- `{row['model']}` ({row['verdict']}): {word}{text}")
    return lines or ["None."]


def _whole(value: object) -> str:
    return "" if pd.isna(value) else str(int(value))  # type: ignore[call-overload]


def _power(value: object) -> str:
    return "" if pd.isna(value) else f"{float(value):.0e}"  # type: ignore[arg-type]
