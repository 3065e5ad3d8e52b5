"""The experiments of the README: its commands work in a small range, and the tables say what came of them."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Repository

from tools.results import sweep

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
(COMMANDS,) = re.findall(r"^## Experiments\n\n```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def row(**changes: Any) -> dict[str, Any]:
    values = dict.fromkeys(sweep.PARAMETERS, 1.0) | {"train_loss": 0.5, "batch.accuracy": 0.75}
    return values | {"validation.accuracy": 0.8} | {name.replace("__", "."): value for name, value in changes.items()}


def test_experiments_are_grouped_by_the_one_parameter_that_they_vary() -> None:
    commit, high, low = row(), row(train__lr=2.0), row(train__lr=0.5)
    two, unfinished = row(train__lr=3.0, train__seed=2.0), row(train__lr=4.0, validation__accuracy=None)

    assert sweep.sweeps([row(train__lr=9.0), commit, high, low, two, unfinished]) == {"train.lr": [low, commit, high]}


def test_seeds_are_summed_up_with_the_deviation_of_a_sample() -> None:
    rows = [row(train__seed=float(seed), validation__accuracy=value) for seed, value in enumerate((0.81, 0.83, 0.82))]

    assert sweep.table("train.seed", rows).splitlines() == [
        "| `train.seed` | training loss | batch accuracy | validation accuracy |",
        "| --- | --- | --- | --- |",
        "| 0 | 0.5000 | 0.7500 | 0.8100 |",
        "| 1 | 0.5000 | 0.7500 | 0.8300 |",
        "| 2 | 0.5000 | 0.7500 | 0.8200 |",
        "| mean | 0.5000 | 0.7500 | 0.8200 |",
        "| standard deviation | 0.0000 | 0.0000 | 0.0100 |",
        "| range | 0.5000 to 0.5000 | 0.7500 to 0.7500 | 0.8100 to 0.8300 |",
    ]


def test_without_experiments_it_says_how_to_make_some(pipeline: Repository) -> None:
    with pytest.raises(
        AssertionError, match=r"(?m)^\s*sweep: expected experiments that vary one parameter, found none"
    ):
        pipeline.run("python", "-m", "tools.results.sweep")


def test_the_commands_of_the_readme_queue_run_and_show_experiments_two_at_a_time(
    reproduced: Repository, tmp_path: Path
) -> None:
    clone = reproduced.copy(tmp_path / "clone")  # with a queue of its own
    *queue, start, status, show = COMMANDS.splitlines()
    (seeds,) = (line for line in queue if "train.seed" in line)
    values = "'train.seed=range(1,10)'"
    assert values in seeds
    before = clone.outputs()
    clone.dvc(*seeds.replace(values, "train.seed=range(1,3)").split()[1:])
    try:
        # The workers live on in the background, and would keep a pipe open.
        subprocess.run(start.split(), cwd=clone.root, env=clone.environment, stdout=subprocess.DEVNULL, check=True)
        while re.search("Queued|Running", clone.run(*status.split())):
            time.sleep(0.5)
    finally:
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(clone.root):
                process.kill()

    lines = clone.run(*show.split()).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| 0", "| 1", "| 2"]
    assert [line.split(" | ")[0] for line in lines[5:]] == ["| mean", "| standard deviation", "| range"]
    committed = json.loads((clone.root / "metrics/evaluate.json").read_text())["validation"]["accuracy"]
    assert lines[2].endswith(f" {committed:.4f} |")
    assert len(set(lines[2:5])) == 3
    assert (clone.outputs(), clone.changed()) == (before, set())
