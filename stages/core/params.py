"""Strict, typed reading of ``params.yaml``: one frozen dataclass per section, no defaults, every value checked.

Each error is one line that names section and key, what is expected and what was found.
"""

import difflib
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from stages.core.command import PARAMS, UserError

VALIDATION_EXAMPLES = 10_000
MAX_ROWS = 50
"""Rows of the error grid: about 12,000 pixels. Browsers open no picture much taller."""


def one_of(*names: str) -> Any:
    """Declare a field that takes one of ``names``."""
    return field(metadata={"names": names, "expected": "one of " + ", ".join(names)})


def whole(low: int, high: int, *names: str) -> Any:
    """Declare a field that takes a whole number from ``low`` to ``high``, or one of ``names``."""
    expected = ", or ".join([f"a whole number from {low} to {high}", *names])
    return field(metadata={"low": low, "high": high, "names": names, "expected": expected})


def real(low: float, high: float, *, zero: bool) -> Any:
    """Declare a field that takes a number from ``low`` (itself included only if ``zero``) to ``high``."""
    expected = f"a number from {low:g} to {high:g}" if zero else f"a number above {low:g}, at most {high:g}"
    return field(metadata={"low": low if zero else math.nextafter(low, high), "high": high, "expected": expected})


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where the arithmetic runs: it may change time, never bytes."""

    framework: str = one_of("tensorflow", "jax")
    device: str = one_of("auto", "cpu", "gpu")
    devices: int | str = whole(1, 1024, "all")


@dataclass(frozen=True, slots=True)
class Resize:
    """The size of the images, in pixels. At 128x128 they take 1.2 GB on the device, and 1.3 GB more to validate."""

    height: int = whole(1, 128)
    width: int = whole(1, 128)


@dataclass(frozen=True, slots=True)
class Train:
    """The hyperparameters of the lesson."""

    seed: int = whole(0, 2**32 - 1)
    epochs: int = whole(1, 1000)
    batch_size: int = whole(1, 60_000)
    lr: float = real(0, 1000, zero=False)
    sigma: float = real(0, 1000, zero=True)


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Which examples of the validation set form the validation batch."""

    batch_size: int = whole(1, VALIDATION_EXAMPLES)
    batch_index: int = whole(0, VALIDATION_EXAMPLES - 1)

    def __post_init__(self) -> None:
        last = (VALIDATION_EXAMPLES - 1) // self.batch_size
        if self.batch_index > last:
            expected = f"a whole number from 0 to {last} ({VALIDATION_EXAMPLES} examples, batches of {self.batch_size})"
            raise UserError(f"evaluate.batch_index: expected {expected}, got {self.batch_index}")


@dataclass(frozen=True, slots=True)
class Render:
    """The layout of the error grid."""

    columns: int = whole(1, 32)


@dataclass(frozen=True, slots=True)
class Params:
    """The whole of ``params.yaml``."""

    runtime: Runtime
    resize: Resize
    train: Train
    evaluate: Evaluate
    render: Render


def load_params(path: Path = PARAMS) -> Params:
    """Read and check the whole of ``params.yaml``.

    Raises:
        UserError: The file cannot be read, is not YAML, or a key is unknown, missing, repeated, mistyped or out of
            range; the message names it.
    """
    try:
        sections = checked_keys(parse_yaml(path.read_text(encoding="utf-8")), Params, "")
        return Params(
            **{entry.name: read_section(entry.type, sections[entry.name], entry.name) for entry in fields(Params)}
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: expected a file, found none: run from the top of the repository") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got {error.object[error.start]:#04x} at byte {error.start}"
        ) from None


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML 1.2 document, read by the library with which DVC reads ``params.yaml``.

    Raises:
        UserError: The text is not one YAML document, or a mapping has a key twice; the message gives the line.
    """
    try:
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = (
            str(error.problem or error.context).removeprefix("but ").partition(" with value ")[0]
        )  # of a second key
        raise UserError(f"{line}expected YAML, but {shown(problem, quoted=False)}") from None
    except Exception as error:  # a tag that does not fit its text makes the library raise whatever it meets
        raise UserError(f"expected YAML, but {shown(f'{type(error).__name__}: {error}', quoted=False)}") from None


def checked_keys(document: Any, schema: Any, section: str) -> dict[str, Any]:
    """Return ``document`` if it is a mapping with exactly the keys of ``schema``, else raise ``UserError``."""
    known = {entry.name: entry for entry in fields(schema)}
    if not isinstance(document, dict):
        raise UserError(f"{section}{': ' * bool(section)}expected the keys {', '.join(known)}, got {shown(document)}")
    prefix = f"{section}." if section else ""
    for key in document:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"expected one of {', '.join(known)}"
            raise UserError(f"{prefix}{shown(key, quoted=False)}: unknown key: {hint}")
    for name, entry in known.items():
        if name not in document:
            expected = entry.metadata.get("expected", "a section of this name")
            raise UserError(f"{prefix}{name}: missing key: expected {expected}")
    return document


def read_section(schema: Any, document: Any, section: str) -> Any:
    """Build the dataclass ``schema`` from one section of ``params.yaml``."""
    values = checked_keys(document, schema, section)
    return schema(**{entry.name: checked_value(entry, values[entry.name], section) for entry in fields(schema)})


def checked_value(entry: Any, value: Any, section: str) -> Any:
    """Return ``value`` as the type of the field ``entry`` if it is in its range, else raise ``UserError``."""
    rule = entry.metadata
    if isinstance(value, str):
        valid = value in rule.get("names", ())
    else:
        numbers = (int, float) if entry.type is float else (int,)
        valid = "low" in rule and type(value) in numbers and rule["low"] <= value <= rule["high"]
    if not valid:
        raise UserError(f"{section}.{entry.name}: expected {rule['expected']}, got {shown(value)}")
    return float(value) if entry.type is float else value


def shown(value: Any, *, quoted: bool = True) -> str:
    """Describe a value of a YAML document on one short line, with its type where it could be mistaken."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"a mapping with {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value) if quoted and isinstance(value, str) else str(value)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()
    return text if len(text) <= 60 else text[:57] + "..."
