"""The README: its numbers are the committed ones, its commands run, its table is that of params.yaml."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import params

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
# make repro and make test are run from nothing by test_make.py and by CI; verify has tests of its own.
MAKE = {"make repro", "make test", "make repro EXTRAS=gpu", "make verify"}


def test_every_make_command_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {command for command in COMMANDS if command.startswith("make")} == MAKE
    assert {command.split()[1] for command in MAKE} <= targets


def test_every_other_command_runs_in_the_order_of_the_readme(pipeline: Any) -> None:
    others = [command for command in COMMANDS if not command.startswith("make")]
    assert others[0] == ". .venv/bin/activate"

    for command in others[1:]:
        pipeline.run(*shlex.split(command.split("#")[0]))
    assert pipeline.changed() > {"params.yaml", "dvc.lock", "metrics/train.json", "metrics/evaluate.json"}


def test_results_are_those_of_the_committed_metrics() -> None:
    train, evaluate = (json.loads((ROOT / f"metrics/{name}.json").read_text()) for name in ("train", "evaluate"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| ")]
    table = {row[0].split(",")[0]: row[1:] for row in rows}

    assert table["training set"][0] == f"{train['train_loss']:.6f}"
    for name, scalars in (("validation set", evaluate["validation"]), ("validation batch", evaluate["batch"])):
        interval = f"{scalars['accuracy_low']:.4f} to {scalars['accuracy_high']:.4f}"
        assert table[name] == [f"{scalars['loss']:.6f}", f"{scalars['accuracy']:.4f}", interval]


def test_table_of_parameters_names_every_key_and_its_range() -> None:
    for section in fields(params.Params):
        for entry in fields(section.type):  # type: ignore[arg-type]
            (line,) = (
                line
                for part in re.findall(rf"^\| `{section.name}` .*?(?=^\| `\w+` \||^$)", README, re.M | re.S)
                for line in part.splitlines()
                if f"`{entry.name}`" in line.split("|")[2]
            )
            if "names" in entry.metadata:
                assert all(f"`{name}`" in line for name in entry.metadata["names"])
            elif section.name != "evaluate":
                assert f"to {entry.metadata['high']:g}" in line or f"to {entry.metadata['high']}" in line


def test_the_model_in_three_lines_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for kind, block in BLOCKS if kind == "python")
    rng = np.random.default_rng(0)
    images, W, b = rng.integers(0, 256, (3, 32, 32), np.uint8), rng.standard_normal((1024, 10)), np.arange(10.0)
    (tmp_path / "data/resized").mkdir(parents=True)
    np.savez(tmp_path / "data/model.npz", W=W, b=b)
    np.savez(tmp_path / "data/resized/validation.npz", images=images)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - the README's own lines
    names["model"].close()
    names["data"].close()

    assert names["predicted"].tolist() == (images.reshape(3, -1) / 256 @ W + b).argmax(axis=1).tolist()


@pytest.mark.parametrize(
    "document",
    sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("**/[!.]*.md") if ".venv" not in path.parts),
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())

    assert [link for link in links if not link.startswith("https://") and not (path.parent / link).exists()] == []
