"""The schema and the page of the configuration: current, and the same that checks the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline_lib.config_reference import PAGE, SCHEMA, config_page, config_schema, schema_text

ROOT = Path(__file__).parents[1]
COMMAND = "run python -m pipeline_lib.config_reference"


def test_the_files_are_current() -> None:
    assert SCHEMA.read_text("utf-8") == schema_text(), COMMAND
    assert PAGE.read_text("utf-8") == config_page(), COMMAND


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_fit_the_schema_and_name_it(path: Path) -> None:
    text = path.read_text("utf-8")
    jsonschema.validate(yaml.safe_load(text), config_schema())
    assert "$schema=../workflow/schemas/config.schema.json" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("contributions", "shard_sizes", 5),
        ("contributions", "per", "token"),
        ("maps", "dataset", 3),
    ],
)
def test_mistakes_do_not_fit(section: str, key: str, value: Any) -> None:
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    config[section][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, config_schema())


def test_every_key_is_described() -> None:
    schema = config_schema()
    for section in [schema, *schema["$defs"].values()]:
        for key, field in section["properties"].items():
            assert "description" in field, (section["title"], key)
