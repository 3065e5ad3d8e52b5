"""A short series of kills on the small pipeline (the long one: docs/reliability.md), and what the series can see."""

import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import Repository

from tools.proof import kills

KILLS = [
    ("resize", "stage", signal.SIGKILL),  # outputs are atomic
    (kills.BOOKKEEPING, "dvc", signal.SIGKILL),  # the repair of dvc's own files
]


@pytest.fixture(scope="module")
def clone(reproduced: Repository, tmp_path_factory: pytest.TempPathFactory) -> kills.Clone:
    # A shell may have started the tests with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monorepo = Repository(tmp_path_factory.mktemp("monorepo"), reproduced.environment)
    project = reproduced.copy(monorepo.root / "project")
    shutil.rmtree(project.root / ".git")
    shutil.copytree(project.root / "plots", monorepo.root / "plots")
    monorepo.git("init", "--quiet")
    monorepo.commit("Two projects")
    return kills.Clone(project.root, tmp_path_factory.mktemp("kills") / "clone", reproduced.environment)


@pytest.mark.slow  # many runs of dvc
@pytest.mark.parametrize(("where", "target", "number"), KILLS)
def test_after_a_kill_make_repro_gives_what_was_committed(
    clone: kills.Clone, where: str, target: str, number: signal.Signals
) -> None:
    kill = kills.Kill(where, target, number, random.choice(kills.SHELLS))  # noqa: S311
    (outcome,) = kills.series(clone, [kill], random.Random())  # noqa: S311

    assert outcome.errors == []


@pytest.mark.slow  # the pipeline in a clone
def test_the_series_sees_a_partial_file_and_a_wrong_result(clone: kills.Clone) -> None:
    model = clone.root / "data/model.npz"
    whole = model.read_bytes()
    try:
        model.write_bytes(whole[:100])
        assert clone.partial() == ["data/model.npz is partial"]
        assert clone.differing() == ["data/model.npz differs"]
        (clone.root / "plots/errors.png.1.tmp").touch()
        assert clone.differing() == ["data/model.npz differs", "plots/errors.png.1.tmp differs"]
    finally:
        model.write_bytes(whole)
        (clone.root / "plots/errors.png.1.tmp").unlink(missing_ok=True)
    assert clone.partial() == clone.differing() == []


def test_a_round_hits_every_stage_with_every_signal_and_the_bookkeeping() -> None:
    kinds = Counter((kill.where, kill.hit) for kill in kills.plan(["train", "render"], 32, random.Random(0)))  # noqa: S311

    assert {kind: count for kind, count in kinds.items() if kind[0] == kills.BOOKKEEPING} == {
        (kills.BOOKKEEPING, "SIGKILL to dvc"): 12,
        (kills.BOOKKEEPING, "SIGTERM to dvc"): 4,
        (kills.BOOKKEEPING, "Ctrl-C"): 4,
    }
    hits = [
        "Ctrl-C",
        *(f"{name} to stage" for name in ("SIGINT", "SIGKILL", "SIGTERM")),
        "SIGKILL to dvc",
        "SIGTERM to dvc",
    ]
    assert {kind for kind in kinds if kind[0] != kills.BOOKKEEPING} == {
        (s, hit) for s in ("train", "render") for hit in hits
    }


def test_the_table_counts_survivors_by_stage_and_signal() -> None:
    kill = kills.Kill("train", "both", signal.SIGINT, "bash")
    good, bad = kills.Outcome(kill, 1.0, 0.1, [], []), kills.Outcome(kill, 1.0, 0.1, [], ["dvc.lock differs"])

    assert kills.table([good, good, bad], ["train"]).splitlines() == [
        "| killed | Ctrl-C | all |",
        "| --- | --- | --- |",
        "| train | 2 of 3 | 2 of 3 |",
        "| bookkeeping |  |  |",
        "| all | 2 of 3 | 2 of 3 |",
    ]


@pytest.mark.slow  # the pipeline in a clone
def test_results_that_are_not_the_committed_ones_are_refused(reproduced: Repository, tmp_path: Path) -> None:
    other = reproduced.copy(tmp_path / "other")
    other.set_parameter("render.columns", 4)
    other.git("commit", "--quiet", "--all", "--message", "Forget the results")

    with pytest.raises(SystemExit, match=r"kills: expected a commit with its own dvc.lock, found another result"):
        kills.Clone(other.root, tmp_path / "clone", reproduced.environment)


def test_a_series_of_no_kills_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["kills", "--kills", "0"])
    with pytest.raises(SystemExit, match=r"^kills: --kills: expected a whole number from 1, got 0$"):
        kills.main()
