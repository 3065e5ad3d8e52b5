"""The page of experiments: its commands work in a small range, and the tables say what resulted."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import Repository
from dvc.repo.experiments.serialize import ExpExecutor, ExpRange, ExpState, SerializableExp
from ruamel.yaml import YAML

from tools.results import sweep

PAGE = (Path(__file__).resolve().parents[2] / "docs/experiments.md").read_text()
(COMMANDS,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


CONTENT = {"train": {"lr": 0.1, "seed": 0}, "runtime": {"devices": 1}}


def found(state: str | None, accuracy: float = 0.8, **changes: dict[str, Any]) -> ExpRange:
    """What DVC gives of an experiment: its state, its validation accuracy and its changes of sections."""
    score = {"batch": {"accuracy": 0.75}, "validation": {"accuracy": accuracy}}
    data = SerializableExp(
        rev="a" * 40,
        params={"params.yaml": {"data": {name: CONTENT[name] | changes.get(name, {}) for name in CONTENT}}},
        metrics={"metrics/train.json": {"data": {"train_loss": 0.5}}, "metrics/evaluate.json": {"data": score}},
    )
    return ExpRange([ExpState("a" * 40, "name", data)], executor=state and ExpExecutor(state))


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What the command prints of experiments as DVC gives them, by paragraph."""

    def printed(*experiments: ExpRange) -> list[str]:
        (commit,) = found(None).revs
        commit.experiments = [*experiments]
        show = SimpleNamespace(show=lambda hide_workspace: [commit])
        monkeypatch.setattr(sweep, "Repo", lambda: nullcontext(SimpleNamespace(experiments=show)))
        sweep.main()
        return capsys.readouterr().out.split("\n\n")

    return printed


def test_only_finished_experiments_are_rows_and_the_state_of_the_others_is_a_line(
    printed: Callable[..., list[str]],
) -> None:
    broken = found("running", train={"lr": 0.7})
    broken.revs[0].data.metrics["metrics/evaluate.json"] = {"error": "YAML"}
    lost = found("success", train={"lr": 0.9})
    del lost.revs[0].data.metrics["metrics/train.json"]
    states = [found(state, train={"lr": 0.6}) for state in ("queued", "failed")]

    table, lines = printed(
        *states, broken, lost, found(None, train={"lr": 0.2}), found("success", 0.7, train={"lr": 0.05})
    )
    assert table.splitlines() == [
        "| `train.lr` | training loss | batch accuracy | validation accuracy |",
        "| --- | ---: | ---: | ---: |",
        "| 0.05 | 0.5000 | 0.7500 | 0.7000 |",
        "| 0.1 | 0.5000 | 0.7500 | 0.8000 |",
        "| 0.2 | 0.5000 | 0.7500 | 0.8000 |",
    ]
    assert lines.splitlines() == [
        "queued: name (train.lr=0.6)",
        "failed: name (train.lr=0.6)",
        "running: name (train.lr=0.7)",
        "finished, without metrics: name (train.lr=0.9)",
    ]


def test_values_of_any_type_and_length_are_printed_as_they_read_back(printed: Callable[..., list[str]]) -> None:
    values = [20260102, 20260101, 0.1000001, 1e-7, 1000, "all"]
    (table,) = printed(*(found("success", train={"lr": value}) for value in values))

    shown = [YAML(typ="safe").load(line.split(" | ")[0].removeprefix("| ")) for line in table.splitlines()[2:]]
    assert shown == [1e-7, 0.1, 0.1000001, 1000, 20260101, 20260102, "all"]


def test_what_varies_two_parameters_has_a_table_and_what_varies_none_a_line(printed: Callable[..., list[str]]) -> None:
    two = found("success", 0.6, train={"lr": 0.2}, runtime={"devices": "all"})
    table, line = printed(two, found("success"))

    assert table.splitlines()[0].startswith("| `train.lr` | `runtime.devices` | training loss |")
    assert [row[:11] for row in table.splitlines()[2:]] == ["| 0.1 | 1 |", "| 0.2 | all"]
    assert line == "finished: name (no parameter changed)\n"


def test_seeds_are_summed_up_once_each_with_the_deviation_of_a_sample(printed: Callable[..., list[str]]) -> None:
    (table,) = printed(
        *(found("success", value, train={"seed": seed}) for seed, value in ((1, 0.82), (2, 0.81), (1, 0.82)))
    )

    assert table.splitlines()[2:] == [
        "| 0 | 0.5000 | 0.7500 | 0.8000 |",
        "| 1 | 0.5000 | 0.7500 | 0.8200 |",
        "| 2 | 0.5000 | 0.7500 | 0.8100 |",
        "| mean | 0.5000 | 0.7500 | 0.8100 |",
        "| standard deviation | 0.0000 | 0.0000 | 0.0100 |",
        "| range | 0.5000 to 0.5000 | 0.7500 to 0.7500 | 0.8000 to 0.8200 |",
    ]


def test_what_cannot_be_shown_is_one_line(
    pipeline: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Callable[..., list[str]]
) -> None:
    def line(folder: str) -> str:
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(SystemExit) as end:
            sweep.main()
        assert "\n" not in str(end.value)
        return str(end.value)

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    pipeline.git("clone", "--quiet", "--depth=1", pipeline.root.as_uri(), str(tmp_path / "shallow"))
    (tmp_path / "outside").mkdir()
    none = "sweep: expected experiments that started from the last commit, found none: "
    assert line(pipeline.root.name) == f"{none}dvc exp run --queue -S train.lr=0.2,0.3"
    assert line("shallow").startswith(f"{none}DVC keeps none in a shallow clone: run `git fetch --unshallow` first: ")
    assert line("outside").startswith("sweep: expected a Git repository, but git says: fatal: not a git repository")
    pipeline.git("init", "--quiet", str(tmp_path / "empty"))
    assert line("empty") == "sweep: expected a commit, found a repository without any: commit the results first"
    (pipeline.root / ".dvc/config").write_text("damaged")
    assert line(pipeline.root.name).startswith("sweep: expected `dvc exp show` to work, found ConfigError: ")


@pytest.mark.slow  # a queue of DVC's
def test_the_commands_of_the_page_queue_run_and_show_experiments_two_at_a_time(
    reproduced: Repository, tmp_path: Path
) -> None:
    clone = reproduced.copy(tmp_path / "clone")  # with a queue of its own
    *queue, start, status, show = COMMANDS.splitlines()
    (seeds,) = (line for line in queue if "train.seed" in line)
    values = "'train.seed=range(1,10)'"
    assert values in seeds
    before = clone.outputs()
    clone.dvc(*seeds.replace(values, "train.seed=1").split()[1:])
    clone.dvc("exp", "run", "--queue", "--name", "failing", "-S", "train.lr=2000")
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
    assert [line.split(" | ")[0] for line in lines[2:7]] == ["| 0", "| 1", "| mean", "| standard deviation", "| range"]
    assert lines[7:] == ["", "failed: failing (train.lr=2000)"]
    committed = json.loads((clone.root / "metrics/evaluate.json").read_text())["validation"]["accuracy"]
    assert lines[2].endswith(f" {committed:.4f} |")
    assert lines[2][3:] != lines[3][3:]
    assert (clone.outputs(), clone.changed()) == (before, set())
