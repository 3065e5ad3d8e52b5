"""README and model card: their numbers are the committed ones, commands run, the table is that of params.yaml."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.core import params

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
# make repro and make test are run from nothing by test_make.py and by CI; the others have tests of their own.
MAKE = {
    "make repro",
    "make test",
    "make compare REV=HEAD~1",
    "make report REV=HEAD~1",
    "make repro EXTRAS=gpu",
    "make verify",
}
EVALUATED = json.loads((ROOT / "metrics/evaluate.json").read_text())
PYTHON = {
    name: block
    for name in ("README.md", "docs/model-card.md")
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
}


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


def table(document: str) -> dict[str, list[str]]:
    """The rows of all tables, without the alignment, by the first cell up to a comma."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in document.splitlines() if line.startswith("| ")]
    return {row[0].split(",")[0]: row[1:] for row in rows}


def test_results_are_those_of_the_committed_metrics() -> None:
    train, rows = json.loads((ROOT / "metrics/train.json").read_text()), table(README)

    assert rows["training set"][0] == f"{train['train_loss']:.6f}"
    for name, scalars in (("validation set", EVALUATED["validation"]), ("validation batch", EVALUATED["batch"])):
        interval = f"{scalars['accuracy_low']:.4f} to {scalars['accuracy_high']:.4f}"
        assert rows[name] == [f"{scalars['loss']:.6f}", f"{scalars['accuracy']:.4f}", interval]


def test_the_committed_run_stands_in_the_tables_of_experiments() -> None:
    train, rows = json.loads((ROOT / "metrics/train.json").read_text()), table(README)
    scalars = [train["train_loss"], EVALUATED["batch"]["accuracy"], EVALUATED["validation"]["accuracy"]]

    for name in ("lr", "batch_size"):
        (value,) = re.findall(rf"^  {name}: (\S+)", (ROOT / "params.yaml").read_text().split("train:")[1], re.M)[:1]
        assert rows[value] == [f"{scalar:.4f}" for scalar in scalars]


def test_the_model_card_has_the_committed_metrics_and_the_failures_of_each_class() -> None:
    rows = table((ROOT / "docs/model-card.md").read_text())
    for name, scalars in (("validation set", EVALUATED["validation"]), ("validation batch", EVALUATED["batch"])):
        interval = f"{scalars['accuracy_low']:.4f} to {scalars['accuracy_high']:.4f}"
        assert rows[name] == [f"{scalars['accuracy']:.4f}", interval, f"{scalars['loss']:.6f}"]

    predictions = pd.read_csv(ROOT / "plots/predictions.csv")
    for name, predicted in predictions.groupby("actual")["predicted"]:
        wrong = predicted[predicted != name].value_counts()
        accuracy, taken_for = rows[str(name)]
        assert accuracy == f"{(predicted == name).mean():.3f}"
        assert taken_for.removesuffix(" of 1000)").removesuffix(")") == f"{wrong.index[0]} ({wrong.iloc[0]}"


def test_table_of_parameters_names_every_key_and_its_range() -> None:
    for section in fields(params.Params):
        for entry in fields(section.type):  # type: ignore[arg-type]
            (line,) = (
                line
                for part in re.findall(rf"^\| `{section.name}` .*?(?=^\| `\w+` \||^$)", README, re.M | re.S)
                for line in part.splitlines()
                if f"`{entry.name}`" in line.split("|")[2]
            )
            assert all(f"`{name}`" in line for name in entry.metadata.get("names", ()))
            if "high" in entry.metadata and section.name != "evaluate":
                assert f"to {entry.metadata['high']:g}" in line or f"to {entry.metadata['high']}" in line


@pytest.mark.parametrize("document", PYTHON)
def test_the_model_in_three_lines_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str) -> None:
    rng = np.random.default_rng(0)
    images, W, b = rng.integers(0, 256, (3, 32, 32), np.uint8), rng.standard_normal((1024, 10)), np.arange(10.0)
    (tmp_path / "data/resized").mkdir(parents=True)
    np.savez(tmp_path / "data/model.npz", W=W, b=b)
    np.savez(tmp_path / "data/resized/validation.npz", images=images)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(PYTHON[document], names)  # noqa: S102 - the document's own lines
    names["model"].close()
    names["data"].close()

    assert names["predicted"].tolist() == (images.reshape(3, -1) / 256 @ W + b).argmax(axis=1).tolist()


@pytest.mark.parametrize(
    "document",
    sorted(path.relative_to(ROOT).as_posix() for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")),
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())

    assert [link for link in links if not link.startswith("https://") and not (path.parent / link).exists()] == []
