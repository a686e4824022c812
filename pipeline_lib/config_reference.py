"""The configuration file as a JSON schema for editors and as a page for readers.

`python -m pipeline_lib.config_reference` writes both; a test keeps them current.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.config import RunConfig

PROJECT = Path(__file__).parents[1]
SCHEMA = PROJECT / "workflow" / "schemas" / "config.schema.json"
PAGE = PROJECT / "docs" / "config.md"

_HEAD = """# The configuration file

Made by `python -m pipeline_lib.config_reference` from the schema that checks the file. An editor
that reads `workflow/schemas/config.schema.json` completes keys and marks mistakes; a first line
`# yaml-language-server: $schema=../workflow/schemas/config.schema.json` tells many of them.

In any text `${name}` stands for an entry of `paths`, for the folder of the project (`${project}`)
or for an environment variable; `${name:-other}` names what to take where it is none of these.
Relative paths start at the working folder. Every problem of a file is reported in one message,
before any job.
"""


def config_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a configuration file."""
    schema = RunConfig.model_json_schema()
    text = {"type": "string", "description": "Path of a YAML file with the concepts."}
    concepts = schema["properties"]["concepts"]
    kept = {"default", "description", "title"} & set(concepts)
    described = {key: concepts.pop(key) for key in sorted(kept)}
    schema["properties"]["concepts"] = {**described, "anyOf": [concepts, text]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "vit-atlas run",
    }


def config_page() -> str:
    """The reference page: one table of keys for each section."""
    schema = config_schema()
    parts = [_HEAD, "## The file\n", _table(schema)]
    for name, section in schema["$defs"].items():
        parts += [f"## {name}\n", section.get("description", "") + "\n", _table(section)]
    return "\n".join(parts)


def _table(section: Mapping[str, Any]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    needed = section.get("required", [])
    for key, field in section["properties"].items():
        default = "(needed)" if key in needed else f"`{_shown(field.get('default'))}`"
        meaning = " ".join(field.get("description", "").split())  # a row is one line
        lines.append(f"| `{key}` | {_type(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _type(field: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_types(field)))


def _types(field: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in field:
        yield _section_link(field["$ref"])
    elif "const" in field:
        yield f"`{field['const']}`"
    elif "enum" in field:
        yield from (f"`{value}`" for value in field["enum"])
    elif "anyOf" in field or "oneOf" in field:
        for part in field.get("anyOf", field.get("oneOf", [])):
            yield from _types(part)
    elif field.get("type") == "array":
        yield f"list of {_type(field['items'])}"
    elif field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        yield f"name to {_type(field['additionalProperties'])}"
    elif field.get("type") == "object" and field.get("patternProperties"):
        yield f"name to {' or '.join(_type(part) for part in field['patternProperties'].values())}"
    else:
        yield _limits(field)


def _limits(field: Mapping[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:g}" for key, sign in words.items() if key in field]
    return " ".join([field.get("type", "anything"), ", ".join(limits)]).strip()


def _section_link(reference: str) -> str:
    name = reference.rsplit("/", 1)[-1]
    return f"[{name}](#{name.lower()})"


def main() -> None:
    """Write the schema and the page."""
    SCHEMA.parent.mkdir(parents=True, exist_ok=True)
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    PAGE.write_text(config_page(), encoding="utf-8")


def schema_text() -> str:
    """The schema as it is committed."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
