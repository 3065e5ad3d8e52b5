"""The pages: their commands run, their numbers are the committed ones, their links lead somewhere."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Repository

from stages.core import params

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in (ROOT, ROOT / "data", ROOT / "docs")
    for path in sorted(folder.glob("*.md"))
}
README, EXPERIMENTS, CARD = (PAGES[name] for name in ("README.md", "docs/experiments.md", "docs/model-card.md"))
COMMANDS = {
    name: [line for block in re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S) for line in block.splitlines()]
    for name, page in PAGES.items()
}
RUN_HERE = COMMANDS["README.md"][2:]
"""Those of README.md after ``make repro`` and ``make test``, which CI runs from nothing."""
NOT_RUN = {
    "make repro EXTRAS=gpu": "needs a GPU",
    "make verify": "trains in every way of the machine; tests/proof/test_verify.py runs rows of it",
    "make bench": "measures for minutes; tests/proof/test_bench.py runs its parts",
    "make kills": "kills for an hour; tests/proof/test_kills.py runs a short series",
}
"""The commands of other pages, by their first words."""
EVALUATED = json.loads((ROOT / "metrics/evaluate.json").read_text())
TRAINED = json.loads((ROOT / "metrics/train.json").read_text())


def test_every_command_is_run_or_has_a_reason_why_not() -> None:
    others = [line for name, lines in COMMANDS.items() if name != "README.md" for line in lines]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in others)] == []
    assert [line for line in others if not line.startswith(tuple(NOT_RUN))] == []
    assert COMMANDS["README.md"][:2] == ["make repro", "make test"]
    # The blocks called bash are run by tests/results/test_sweep.py and tests/test_remote.py.
    assert [name for name, page in PAGES.items() if "```bash" in page] == ["docs/experiments.md", "docs/sharing.md"]


def test_every_target_that_is_named_is_one_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES.values() for target in re.findall(r"(?:^|`)make ([a-z-]+)", page, re.MULTILINE)}
    assert named - targets == set()


@pytest.mark.slow  # runs of dvc
def test_the_commands_of_the_readme_run_in_their_order(pipeline: Repository) -> None:
    assert RUN_HERE[0] == ". .venv/bin/activate"
    for command in RUN_HERE[1:]:
        pipeline.run(*shlex.split(command), *["ENVIRONMENT="] * command.startswith("make"))
        if command.startswith("dvc exp run"):
            assert pipeline.changed() > {"params.yaml", "dvc.lock", "metrics/train.json", "metrics/evaluate.json"}
        if command.startswith("dvc params"):
            pipeline.commit("Another learning rate")
    assert pipeline.changed() == set()
    assert (pipeline.root / "report.html").exists()


def table(page: str) -> dict[str, list[str]]:
    """The rows of all tables, without the alignment, by the first cell up to a comma."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return {row[0].split(",")[0]: row[1:] for row in rows}


def test_results_are_those_of_the_committed_metrics() -> None:
    rows, of_card = table(README), table(CARD)

    assert rows["training set"][0] == f"{TRAINED['train_loss']:.6f}"
    for name, scalars in (("validation set", EVALUATED["validation"]), ("validation batch", EVALUATED["batch"])):
        interval = f"{scalars['accuracy_low']:.4f} to {scalars['accuracy_high']:.4f}"
        loss, accuracy = f"{scalars['loss']:.6f}", f"{scalars['accuracy']:.4f}"
        assert rows[name] == [loss, accuracy, interval]
        assert of_card[name] == [accuracy, interval, loss]


def test_the_committed_run_stands_in_the_tables_of_experiments() -> None:
    rows = table(EXPERIMENTS)
    scalars = [TRAINED["train_loss"], EVALUATED["batch"]["accuracy"], EVALUATED["validation"]["accuracy"]]

    for name in ("lr", "batch_size"):
        (value,) = re.findall(rf"^  {name}: (\S+)", (ROOT / "params.yaml").read_text().split("train:")[1], re.M)[:1]
        assert rows[value] == [f"{scalar:.4f}" for scalar in scalars]


def test_the_model_card_has_the_failures_of_each_class() -> None:
    rows = table(CARD)
    predictions = pd.read_csv(ROOT / "plots/predictions.csv")
    for name, predicted in predictions.groupby("actual")["predicted"]:
        incorrect = predicted[predicted != name].value_counts()
        accuracy, taken_for = rows[str(name)]
        assert accuracy == f"{(predicted == name).mean():.3f}"
        assert taken_for.removesuffix(" of 1000)").removesuffix(")") == f"{incorrect.index[0]} ({incorrect.iloc[0]}"


def test_the_table_of_parameters_names_every_key_and_its_range() -> None:
    for section in fields(params.Params):
        for entry in fields(section.type):  # type: ignore[arg-type]
            (line,) = (
                line
                for part in re.findall(rf"^\| `{section.name}` .*?(?=^\| `\w+` \||^$)", EXPERIMENTS, re.M | re.S)
                for line in part.splitlines()
                if f"`{entry.name}`" in line.split("|")[2]
            )
            assert all(f"`{name}`" in line for name in entry.metadata.get("names", ()))
            if "high" in entry.metadata and section.name != "evaluate":
                assert f"to {entry.metadata['high']:g}" in line or f"to {entry.metadata['high']}" in line


def test_the_model_in_three_lines_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images, W, b = rng.integers(0, 256, (3, 32, 32), np.uint8), rng.standard_normal((1024, 10)), np.arange(10.0)
    (tmp_path / "data/resized").mkdir(parents=True)
    np.savez(tmp_path / "data/model.npz", W=W, b=b)
    np.savez(tmp_path / "data/resized/validation.npz", images=images)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", CARD, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - the page's own lines
    names["model"].close()
    names["data"].close()

    assert names["predicted"].tolist() == (images.reshape(3, -1) / 256 @ W + b).argmax(axis=1).tolist()


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("name", PAGES)
def test_lines_outside_of_tables_are_short(name: str) -> None:
    long = [line for line in PAGES[name].splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []
