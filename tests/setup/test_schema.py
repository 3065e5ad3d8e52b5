"""The schema for editors: generated, committed, and of one mind with the code that reads ``params.yaml``."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stages.core.command import UserError
from stages.core.params import load_params
from tools.setup import schema

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = json.loads((ROOT / schema.SCHEMA).read_text())
TEXT = (ROOT / "params.yaml").read_text()


def test_the_committed_schema_is_the_generated_one() -> None:
    assert schema.schema(TEXT) == COMMITTED, "run: python -m tools.setup.schema"


def test_every_parameter_is_described_by_its_comment() -> None:
    described = {
        f"{section}.{key}": entry["description"]
        for section, keys in COMMITTED["properties"].items()
        for key, entry in keys["properties"].items()
    }

    for name, description in described.items():
        section, key = name.split(".")
        (comment,) = re.findall(rf"^{section}:.*?^  {key}: \S+ # (.*?)$", TEXT, re.MULTILINE | re.DOTALL)
        assert description.startswith(f"{comment} (")


CHANGES: list[tuple[str, str, Any]] = [
    ("train", "lr", 0.5),
    ("train", "lr", 1000),
    ("train", "lr", 1000.1),
    ("train", "lr", 0),
    ("train", "sigma", 0),
    ("train", "sigma", -0.1),
    ("train", "epochs", 1),
    ("train", "epochs", 0),
    ("train", "epochs", 1.5),
    ("train", "epochs", "ten"),
    ("train", "epochs", True),
    ("train", "seed", 2**32 - 1),
    ("train", "seed", 2**32),
    ("train", "momentum", 0.9),
    ("runtime", "framework", "jax"),
    ("runtime", "framework", "torch"),
    ("runtime", "device", None),
    ("runtime", "devices", "all"),
    ("runtime", "devices", "some"),
    ("runtime", "devices", 1024),
    ("runtime", "devices", 1025),
    ("runtime", "devices", 0),
    ("resize", "width", 128),
    ("resize", "width", 129),
    ("render", "columns", 32),
    ("optimizer", "name", "sgd"),
]


@pytest.mark.parametrize(("section", "key", "value"), CHANGES)
def test_schema_and_code_accept_the_same(tmp_path: Path, section: str, key: str, value: Any) -> None:
    document = copy.deepcopy(yaml.safe_load(TEXT))
    document.setdefault(section, {})[key] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    try:
        load_params(path)
        accepted = True
    except UserError:
        accepted = False

    assert jsonschema.Draft7Validator(COMMITTED).is_valid(document) == accepted


@pytest.mark.parametrize(("section", "key"), [("train", "lr"), ("render", "columns")])
def test_the_schema_asks_for_every_key(section: str, key: str) -> None:
    document = yaml.safe_load(TEXT)
    del document[section][key]

    assert not jsonschema.Draft7Validator(COMMITTED).is_valid(document)


def test_editors_are_told_of_both_schemas() -> None:
    assert TEXT.splitlines()[0] == f"# yaml-language-server: $schema={schema.SCHEMA}"
    assert re.fullmatch(
        r"# yaml-language-server: \$schema=https://\S+/schema.json", (ROOT / "dvc.yaml").read_text().splitlines()[0]
    )
