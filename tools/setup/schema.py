"""Write ``params.schema.json``, with which editors explain, complete and check ``params.yaml``.

    python -m tools.setup.schema

Types and ranges come from the dataclasses of ``stages/core/params.py``, descriptions from the comments
of ``params.yaml``.
"""

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from stages.core.command import PARAMS
from stages.core.params import Params

SCHEMA = Path("params.schema.json")


def comments(text: str) -> dict[str, str]:
    """Return the comment behind each ``section`` and each ``section.key`` of a ``params.yaml`` in block style."""
    found, section = {}, ""
    for line in text.splitlines():
        entry = re.fullmatch(r"(  )?(\w+):.*?(?: # (.*))?", line)
        if entry:
            indent, name, comment = entry.groups()
            section = section if indent else name
            found[f"{section}.{name}" if indent else name] = comment or ""
    return found


def value_schema(entry: Any) -> dict[str, Any]:
    """Return the JSON Schema of a field of one of the sections."""
    rule = entry.metadata
    names = {"enum": list(rule.get("names", ()))}
    if "low" not in rule:
        return names
    above_zero = rule["low"] == math.nextafter(0, 1)
    lowest = {"exclusiveMinimum": 0} if above_zero else {"minimum": rule["low"]}
    numbers = {"type": "number" if entry.type is float else "integer", **lowest, "maximum": rule["high"]}
    return {"anyOf": [numbers, names]} if rule.get("names") else numbers


def mapping(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a mapping with exactly these keys."""
    return {"type": "object", "additionalProperties": False, "required": list(properties), "properties": properties}


def schema(text: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 7, which editors' YAML support knows) of ``params.yaml`` with content ``text``."""
    said = comments(text)
    sections = {
        section.name: {
            "description": said.get(section.name, ""),
            **mapping(
                {
                    entry.name: {
                        "description": f"{said.get(f'{section.name}.{entry.name}', '')} ({entry.metadata['expected']})",
                        **value_schema(entry),
                    }
                    for entry in fields(section.type)  # type: ignore[arg-type]  # each section is a dataclass
                }
            ),
        }
        for section in fields(Params)
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Parameters of the pipeline"} | mapping(
        sections
    )


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(PARAMS.read_text(encoding="utf-8")), indent=2) + "\n", encoding="utf-8")
