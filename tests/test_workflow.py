"""The CI workflow: what it may do, and that each of its commands does what it should, without the service."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import link_environment

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / ".github/workflows/pipeline.yml"
DOCUMENT = yaml.load(WORKFLOW.read_text(), Loader=yaml.BaseLoader)  # noqa: S506 - strings only: YAML 1.1 reads `on` as true
(JOB,) = DOCUMENT["jobs"].values()
STEPS = {step["name"]: step for step in JOB["steps"]}
COMMANDS = [name for name, step in STEPS.items() if "run" in step]
PROOF = "Prove without a GPU what an NVIDIA GPU would compute"


class Runner:
    """Runs the steps of the job in a clone, as the service does: ``bash -e`` on a file, with a summary to write to."""

    def __init__(self, clone: Any, scratch: Path, expressions: dict[str, str]) -> None:
        self.clone, self.summary = clone, scratch / "summary.md"
        self.script, self.expressions = scratch / "step.sh", expressions
        self.summary.touch()
        link_environment(clone.root)

    def step(self, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        declared = {key: self.expressions.get(value, value) for key, value in STEPS[name].get("env", {}).items()}
        assert not [value for value in declared.values() if "${{" in value]
        self.script.write_text(STEPS[name]["run"])
        return subprocess.run(
            ["bash", "-e", str(self.script)],
            cwd=self.clone.root,
            env={
                **self.clone.environment,
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "MAKEFLAGS": "ENVIRONMENT=",  # the one that is linked
                **declared,
                **environment,
            },
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def committed(reproduced: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A repository with a second commit, in which another learning rate was tried."""
    change = reproduced.copy(tmp_path_factory.mktemp("workflow") / "committed")
    change.set_parameter("train.lr", 0.2)
    change.repro()
    change.commit("Raise the learning rate")
    return change


@pytest.fixture
def runner(committed: Any, tmp_path: Path) -> Runner:
    clone = committed.clone(tmp_path / "clone")
    data = tmp_path / "fashion-mnist"
    shutil.copytree(clone.environment["FASHION_MNIST_DIR"], data)
    base = STEPS["Compare with the base"]["env"]["BASE"]
    return Runner(clone, tmp_path, {"${{ runner.temp }}/fashion-mnist": str(data), base: "origin/HEAD~1"})


def test_every_command_is_tested_below() -> None:
    assert COMMANDS == [
        "Lint",
        "Test",
        "Run every stage again",
        "Prove that the results are the committed ones",
        "Compare with the base",
        PROOF,
    ]


@pytest.mark.slow  # every stage runs
def test_the_rerun_proves_a_commit_reports_its_change_and_fails_on_results_of_other_code(runner: Runner) -> None:
    for name in COMMANDS[2:5]:
        done = runner.step(name)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        if name == "Run every stage again":
            assert re.findall(r"^Running stage '(\w+)':$", done.stdout, re.MULTILINE) == [
                "download",
                "resize",
                "train",
                "evaluate",
                "render",
            ]

    summary = runner.summary.read_text()
    assert "## Metrics against " in summary
    assert re.search(r"^\| metrics/train\.json +\| train_loss ", summary, re.MULTILINE)
    assert re.search(r"^\| params\.yaml +\| train\.lr +\| 0\.1 +\| 0\.2 +\|", summary, re.MULTILINE)
    assert re.search(r"^### Old: .*, new: HEAD", summary, re.MULTILINE)
    assert (runner.clone.root / "report.html").stat().st_size > 0
    assert runner.clone.changed() == set()

    module = runner.clone.root / "stages/evaluate.py"
    line = "images=images[incorrect]"
    assert line in module.read_text()
    module.write_text(module.read_text().replace(line, f"{line} // 2"))
    runner.clone.git("commit", "--quiet", "--all", "--message", "Forget the results")
    assert runner.clone.repro().ran == ["evaluate", "render"]
    done = runner.step("Prove that the results are the committed ones")
    assert done.returncode == 1
    assert "::error::The results of this code are not those that were committed" in done.stdout
    summary = runner.summary.read_text()
    assert re.findall(r"^- (\S+)$", summary, re.MULTILINE) == ["dvc.lock", "plots/errors.png"]
    assert re.findall(r"^\| modified +\| (\S+)", summary, re.MULTILINE) == ["data/errors.npz"]


@pytest.mark.slow  # a run of dvc, in its fixture
def test_a_base_that_is_not_there_is_replaced_by_the_parent(committed: Any) -> None:
    (line,) = re.findall("^base=.*", STEPS["Compare with the base"]["run"], re.MULTILINE)
    for base, expected in (("0" * 40, "HEAD~1"), ("HEAD", "HEAD")):
        found = committed.run("env", f"BASE={base}", "bash", "-ec", f"{line}; echo $base")
        assert found == committed.git("rev-parse", expected)


def test_lint_and_test_are_those_of_ci_run() -> None:
    assert [STEPS[name]["run"] for name in ("Lint", "Test")] == ["make lint", "make test-all"]
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make lint test-all"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_once_a_week_one_runner_installs_what_the_proof_needs_and_runs_it() -> None:
    step = STEPS[PROOF]

    assert step["if"] == "github.event_name == 'schedule' && runner.arch == 'X64' && matrix.python == '3.11'"
    (extra,) = re.findall(r"^make verify EXTRAS=(\w+) EPOCHS=1$", step["run"], re.MULTILINE)
    assert (ROOT / f"requirements-{extra}.lock").exists()
    modules = re.findall(r"tests/\S+", step["run"])
    assert [path for path in modules if "EXTRAS=proof" in (ROOT / path).read_text()] == modules != []


@pytest.mark.slow  # runs of pre-commit
def test_the_hooks_lint_a_commit_and_keep_stale_results_from_being_pushed(committed: Any) -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    lint, results = (hook for repository in config["repos"] for hook in repository["hooks"])
    assert lint["entry"].endswith("; make lint'")
    assert (lint["stages"], results["stages"]) == (["pre-commit"], ["pre-push"])
    push = ("pre-commit", "run", "--all-files", "--hook-stage", "pre-push")
    for stage in ("pre-commit", "pre-push"):
        with pytest.raises(AssertionError, match=r"expected \.venv, found none here\. make repro makes it\."):
            committed.run(*push[:-1], stage)
    link_environment(committed.root)
    try:
        committed.run(*push)
        committed.append("stages/render.py", "# A comment.")
        committed.git("commit", "--quiet", "--all", "--message", "Forget the results", "--no-verify")
        with pytest.raises(AssertionError, match=r"results are those of the code .*run make repro and commit.*Failed"):
            committed.run(*push)
    finally:
        committed.git("reset", "--quiet", "--hard", "HEAD~1")
        shutil.rmtree(committed.root / ".venv")


def test_the_workflow_may_read_and_nothing_else() -> None:
    assert DOCUMENT["permissions"] == {"contents": "read"}
    assert "permissions" not in JOB
    assert DOCUMENT["on"].keys() == {"push", "pull_request", "schedule", "workflow_dispatch"}
    assert STEPS["Get the whole history, to compare with"]["with"] == {
        "fetch-depth": "0",
        "persist-credentials": "false",
    }
    assert "secrets." not in WORKFLOW.read_text()


def test_actions_are_pinned_to_commits_and_named_with_their_version() -> None:
    uses = re.findall(r"uses: (.*)", WORKFLOW.read_text())
    assert len(uses) == len(JOB["steps"]) - len(COMMANDS)
    assert [use for use in uses if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []


def test_no_expression_is_pasted_into_a_command() -> None:
    assert [name for name in COMMANDS if "${{" in STEPS[name]["run"]] == []


def test_the_job_ends_and_the_weekly_rerun_starts_from_nothing() -> None:
    assert int(JOB["timeout-minutes"]) <= 60
    runners = [(each["runner"], each["python"]) for each in JOB["strategy"]["matrix"]["include"]]
    assert runners == [("ubuntu-24.04", "3.11"), ("ubuntu-24.04", "3.13"), ("ubuntu-24.04-arm", "3.12")]
    cached = [step for step in STEPS.values() if step.get("uses", "").startswith("actions/cache@")]
    assert [step["if"] for step in cached] == ["github.event_name != 'schedule'"] * 2
    assert [path for step in cached for path in step["with"]["path"].split() if "dvc" in path] == []
    assert "--force" in STEPS["Run every stage again"]["run"]


@pytest.mark.parametrize(
    "change",
    [
        ("timeout-minutes: 45", "timeout-minuts: 45"),
        ("de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2", "v6"),
        ('git rev-parse --verify --quiet "$BASE^{commit}"', "git rev-parse ${{ github.head_ref }}"),
    ],
)
def test_the_linters_of_make_lint_refuse_a_slip(tmp_path: Path, change: tuple[str, str]) -> None:
    (tmp_path / ".github/workflows").mkdir(parents=True)
    text = WORKFLOW.read_text()
    assert change[0] in text
    (tmp_path / ".github/workflows/pipeline.yml").write_text(text.replace(*change))
    makefile = (ROOT / "Makefile").read_text()
    linters = [
        line.split() for line in re.findall(r"^\t((?:zizmor|check-jsonschema .*github-workflows).*)$", makefile, re.M)
    ]
    assert len(linters) == 2

    codes = [subprocess.run(linter, cwd=tmp_path, capture_output=True).returncode for linter in linters]
    assert any(codes)
