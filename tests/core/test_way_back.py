"""The way back to the last commit's results: it works whatever is staged, and is named only where it can work."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from stages.core.way_back import GO_BACK, way_back

LOCK = "schema: '2.0'\nstages:\n  train:\n    cmd: python\n"


@pytest.mark.slow  # runs of dvc
def test_it_returns_to_the_last_commit_from_staged_results(pipeline: Any) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (pipeline.root / "data").rglob("*") if path.is_file()}

    before = state()
    pipeline.set_parameter("evaluate.batch_index", 1)
    pipeline.repro("--single-item", "evaluate")
    pipeline.git("add", "--all")
    assert state() != before
    for commands, left in ((GO_BACK, {"params.yaml"}), (GO_BACK.replace("dvc.lock", "dvc.lock params.yaml"), set())):
        for command in commands.split(" && "):
            pipeline.run(*shlex.split(command))
        assert (state(), pipeline.changed()) == (before, left)


def test_it_is_named_only_where_the_last_commit_has_results_that_dvc_can_read(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = type(source)(tmp_path / "top/project", source.environment)
    project.root.mkdir(parents=True)
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert way_back() == ""

    project.git("init", "--quiet", "..")
    (project.root / "dvc.lock").write_text(LOCK)
    assert way_back() == ""
    project.commit("No results")
    assert way_back() == ""
    for folder in ("metrics", "plots"):
        (project.root / folder).mkdir()
        (project.root / folder / "file").touch()
    project.commit("Results")
    (project.root / "dvc.lock").write_text("damaged")
    assert way_back().startswith(f"`{GO_BACK}` brings back the last commit's results")
    for damaged in (LOCK[:20], LOCK[:-12], ""):
        (project.root / "dvc.lock").write_text(damaged)
        project.commit("A damaged lock")
        assert way_back() == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert way_back() == ""
