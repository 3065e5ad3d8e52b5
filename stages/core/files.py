"""The files that stages exchange: encoders whose bytes depend on nothing but the content, and one way to write them."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError, check_unchanged

DIGITS = 6
"""Decimals of every loss and ratio in ``metrics/`` and ``plots/``: far below what one example can change."""


def npz_bytes(**arrays: NDArray[Any]) -> bytes:
    """Encode arrays as an uncompressed ``.npz`` whose members are dated 1980: equal arrays give equal bytes.

    Not with ``np.savez``, which asks for ZIP64 fields that Python's patch releases write differently (python/cpython
    gh-103861).
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")
            member.create_system = 3  # as on Unix, wherever it is written
            archive.writestr(member, content.getvalue())
    return buffer.getvalue()


def json_bytes(metrics: Mapping[str, Any]) -> bytes:
    """Encode nested scalars as JSON with sorted keys; floats are rounded to ``DIGITS`` decimals."""

    def rounded(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: rounded(item) for key, item in value.items()}
        return round(value, DIGITS) if isinstance(value, float) else value

    return (json.dumps(rounded(metrics), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Encode rows as CSV with LF line ends; floats are written with ``DIGITS`` decimals."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{cell:.{DIGITS}f}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue().encode()


def read_npz(path: Path, **contract: tuple[str, tuple[int | None, ...]]) -> list[NDArray[Any]]:
    """Read the arrays of a ``.npz`` and check them against a contract, without ever unpickling.

    Args:
        path: The file.
        **contract: For each array its dtype and shape; ``None`` stands for any length.

    Returns:
        The arrays, in the order of the contract.

    Raises:
        UserError: The file is missing or damaged, or an array breaks the contract.
    """
    remedy = "run `dvc repro` to make it again"
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: expected a file, found none: {remedy}") from None
    try:
        with np.load(content, allow_pickle=False) as archive:
            found = {name: np.asanyarray(archive[name]) for name in archive.files}
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise whatever they meet
        damage = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: expected an .npz archive, found damage ({damage:.200}): {remedy}") from None
    if sorted(found) != sorted(contract):
        raise UserError(f"{path}: expected the arrays {sorted(contract)}, found {sorted(found)}: {remedy}")
    for name, (dtype, shape) in contract.items():
        array = found[name]
        lengths = zip(array.shape, shape, strict=False)
        fits = array.ndim == len(shape) and all(want in (None, have) for have, want in lengths)
        if array.dtype != dtype or not fits:
            wanted = str(tuple("n" if length is None else length for length in shape)).replace("'", "")
            raise UserError(f"{path}: expected {name} {dtype} {wanted}, found {array.dtype} {array.shape}: {remedy}")
    return [found[name] for name in contract]


def read_csv(path: Path, columns: list[str]) -> Any:
    """Read a CSV that another stage wrote.

    Raises:
        UserError: The file is missing, or its columns are others.
    """
    import pandas as pd  # here, as only render reads tables

    try:
        table = pd.read_csv(path)
    except (FileNotFoundError, ValueError) as error:
        found = " ".join(str(error).split())
        raise UserError(f"{path}: expected a CSV file, found {found}: run `dvc repro` to make it again") from None
    if list(table.columns) != columns:
        raise UserError(f"{path}: expected the columns {columns}, found {list(table.columns)}: run `dvc repro`")
    return table


def publish(outputs: Mapping[Path, bytes]) -> None:
    """Write all outputs of a stage, each whole: no reader ever sees a part of a file under its name.

    Every content is first written and synced to a temporary sibling; only when all are on disk are they renamed, so a
    full disk or a kill leaves either the old files or the new ones.

    Raises:
        UserError: What the stage started from has changed meanwhile.
    """
    siblings = {path: path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in outputs}
    for path in outputs:
        for stale in path.parent.glob(f"{path.name}.[0-9]*.tmp"):
            stale.unlink()  # a killed stage left it
    try:
        for path, content in outputs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with siblings[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        check_unchanged()
        for path, sibling in siblings.items():
            sibling.replace(path)
    finally:
        for sibling in siblings.values():
            sibling.unlink(missing_ok=True)
