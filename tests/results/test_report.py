"""The page of the results: its numbers, what it says of their origin, and what it refuses. A browser: test_chromium."""

import base64
import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import PARAMETERS, Repository

from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.params import load_params
from stages.model.metrics import wilson_interval
from tools.results import report

SETTINGS = {"NUMPY_MADVISE_HUGEPAGE": "none", "PANDAS_FUTURE": "none", "PILLOW_BLOCK_SIZE": "none"}
"""Settings of libraries that would end their import if the tool let them through."""
HOSTILE = "<script>alert(1)</script>"
DATA = ("data/raw", "data/resized", "data/model.npz", "data/errors.npz")


def two_revisions(repository: Repository, root: Path) -> Repository:
    """Clone, without data, with a branch of a hostile name: another lr, a hostile device, fewer correct predictions."""
    clone = repository.clone(root)
    confusion = root / "plots/predictions.csv"
    rows = confusion.read_text().splitlines(keepends=True)
    correct = [i for i, row in enumerate(rows) if len({*row.strip().split(",")}) == 1]
    for i in correct[:40]:
        rows[i] = "bag,coat\n" if rows[i].startswith("bag") else f"{rows[i].split(',')[0]},bag\n"
    clone.git("switch", "--quiet", "--create", HOSTILE)
    confusion.write_text("".join(rows))
    clone.set_parameter("train.lr", 0.05)
    clone.set_parameter("runtime.device", "<b>cpu</b>")
    clone.commit("Old")
    clone.git("switch", "--quiet", "-")
    return clone


class Page(HTMLParser):
    """The tags with their attributes, the texts outside of scripts and styles, and the scripts."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem:
            self.scripts[-1] += data
        elif not self.cdata_elem:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(reproduced: Repository, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The page of the small pipeline, and its repository."""
    copy = reproduced.copy(tmp_path_factory.mktemp("report") / "copy")
    hostile = replace(copy, environment={**copy.environment, **SETTINGS})
    printed = hostile.run("python", "-m", "tools.results.report", "--output", "made.html")
    assert printed == "made.html: open it in a browser\n"
    path = copy.root / "made.html"
    content = path.read_bytes()
    path.unlink()
    return SimpleNamespace(content=content, page=Page(content), repository=copy, root=copy.root)


@pytest.fixture
def clone(reproduced: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A clone of the small pipeline, and in it; pages lack the library, which takes seconds to bundle."""
    made = reproduced.clone(tmp_path / "clone")
    for name in os.environ:
        if name.startswith(("GIT_", "DVC_")):
            monkeypatch.delenv(name)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(made.root)
    monkeypatch.setattr("vl_convert.javascript_bundle", str)
    return made


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    report.main()


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line with which the command ends; nothing is left beside it."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    message = str(caught.value.code)
    assert message.startswith("report: ")
    assert "\n" not in message
    assert [*Path.cwd().rglob("*.tmp")] == []
    return message.removeprefix("report: ")


# What the page says.


def test_the_headline_numbers_are_those_of_the_metrics(made: SimpleNamespace) -> None:
    scores = json.loads((made.root / "metrics/evaluate.json").read_text())
    last = json.loads((made.root / "metrics/train.json").read_text())
    for name in ("validation", "batch"):
        score = scores[name]
        interval = f"95 % interval {score['accuracy_low']:.4f} to {score['accuracy_high']:.4f}"
        correct = f"{score['correct']} of {score['examples']} correct, loss {score['loss']:.4f}"
        assert f"{score['accuracy']:.4f} {interval} {correct}" in made.page.text
    assert f"Training loss {last['train_loss']:.4f}" in made.page.text


def test_the_charts_get_the_rows_of_the_plots(made: SimpleNamespace) -> None:
    data = json.loads(made.page.scripts[0])
    history, predictions, classes = (
        [*csv.DictReader((made.root / f"plots/{name}.csv").read_text().splitlines())]
        for name in ("history", "predictions", "class_accuracy")
    )
    assert data["history"] == [{key: float(value) for key, value in row.items()} for row in history]
    counts = Counter((row["actual"], row["predicted"]) for row in predictions)
    cells = {(cell["actual"], cell["predicted"]): cell for cell in data["cells"]}
    assert [*cells] == [(actual, predicted) for actual in CLASS_NAMES for predicted in CLASS_NAMES]
    assert {pair: cell["count"] for pair, cell in cells.items() if cell["count"]} == counts
    assert all((cell["outcome"] == "correct") == (actual == predicted) for (actual, predicted), cell in cells.items())
    for row, drawn in zip(classes, data["classes"], strict=True):
        correct, examples = int(row["correct"]), int(row["examples"])
        assert (drawn["class"], drawn["correct"], drawn["examples"]) == (row["class"], correct, examples)
        assert drawn["accuracy"] == correct / examples
        assert (drawn["low"], drawn["high"]) == wilson_interval(correct, examples)
        fractions = sum(cells[row["class"], predicted]["fraction"] for predicted in CLASS_NAMES)
        assert fractions == pytest.approx(1, abs=1e-12)


def test_every_chart_has_a_table_of_its_numbers(made: SimpleNamespace) -> None:
    data = json.loads(made.page.scripts[0])
    for epoch in data["history"]:
        losses = f"{epoch['train_loss']:.4f} {epoch['validation_loss']:.4f}"
        assert f" {epoch['epoch']} {losses} " in made.page.text
        assert f" {epoch['epoch']} {epoch['validation_accuracy']:.4f} " in made.page.text
    for row in data["classes"]:
        assert f"{row['class']} {row['correct']} {row['examples']} {row['accuracy']:.4f}" in made.page.text
    for actual in CLASS_NAMES:
        counts = [str(cell["count"]) for cell in data["cells"] if cell["actual"] == actual]
        assert " ".join([actual, *counts]) in made.page.text


def test_the_picture_is_that_of_the_plots_and_its_text_counts_the_errors(made: SimpleNamespace) -> None:
    (picture,) = made.page.all("img")
    kind, _, encoded = str(picture["src"]).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(encoded) == (made.root / "plots/errors.png").read_bytes()
    rows = [tuple(row) for row in csv.reader((made.root / "plots/predictions.csv").read_text().splitlines())][1:257]
    errors = Counter(row for row in rows if row[0] != row[1])
    first = f"{errors.total()} of the 256 examples of the validation batch are misclassified. Most frequent: "
    assert str(picture["alt"]).startswith(first)
    named = re.findall(r"([a-z -]+) taken for ([a-z -]+) \((\d+)\)", str(picture["alt"]).removeprefix(first))
    assert [int(count) for *_, count in named] == sorted(errors.values(), reverse=True)[:3]
    assert all(errors[actual.strip(), predicted] == int(count) for actual, predicted, count in named)


def test_the_text_of_a_picture_says_what_it_leaves_out_and_that_there_is_no_error(made: SimpleNamespace) -> None:
    picture = (made.root / "plots/errors.png").read_bytes()
    params = load_params(made.root / "params.yaml")
    scores: dict[str, dict[str, Any]] = {"batch": {"examples": 10_000}}
    errors = Counter({("dress", "bag"): 200, ("bag", "coat"): 300})
    many = report.error_grid(report.Results(params, scores, [], Counter(), errors, picture))
    none = report.error_grid(report.Results(params, scores, [], Counter(), Counter(), picture))
    first = f"The first {50 * params.render.columns} are shown."
    assert 50 * params.render.columns == 400
    assert f'misclassified. {first} Most frequent: bag taken for coat (300), dress taken for bag (200)."' in many
    assert 'alt="0 of the 10000 examples of the validation batch are misclassified. "' in none


def test_the_parameters_are_all_there(made: SimpleNamespace) -> None:
    for name, value in PARAMETERS.items():
        assert f" {name} {value} " in made.page.text


def test_the_outputs_have_the_hashes_of_the_lock_and_are_on_disk(made: SimpleNamespace) -> None:
    outputs = made.repository.outputs()
    assert len(outputs) == 12
    for path, md5 in outputs.items():
        assert re.search(rf" {re.escape(path)} {re.escape(md5)} [\d,]+ yes ", made.page.text)
    assert "Not up to date" not in made.page.text


def test_versions_and_hardware_are_those_of_here(made: SimpleNamespace) -> None:
    assert f"Python {'.'.join(map(str, sys.version_info[:3]))} NumPy {np.__version__} TensorFlow " in made.page.text
    assert f"{os.cpu_count()} CPUs memory {psutil.virtual_memory().total / 2**30:.1f} GiB" in made.page.text


def test_gpus_are_named_by_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.common.machine.driver_gpus", lambda: 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.environment()["GPU"] == "2 without a name"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho First GPU\necho $1 $2\n")
    tool.chmod(0o755)
    assert report.environment()["GPU"] == "First GPU, --query-gpu=name --format=csv,noheader"
    monkeypatch.setattr("tools.common.machine.driver_gpus", lambda: None)
    assert report.environment()["GPU"] == "none"


def test_no_framework_is_started(clone: Repository) -> None:
    script = (
        "import sys; from tools.results import report; report.vl_convert.javascript_bundle = str; report.page(None)"
    )
    assert clone.run("python", "-c", f"{script}; print({{'tensorflow', 'jax'}} & {{*sys.modules}})") == "set()\n"


def test_commit_changes_and_lost_outputs_are_named(clone: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("plots/curves.png").open("ab") as file:
        file.write(b"more")
    clone.append("stages/train.py", "# A comment.")
    text = Page(report.page(None)).text
    subject = "Reproduce the pipeline on a small data set"
    commit = clone.git("rev-parse", "--short", "HEAD").strip()
    assert f"Commit {commit}: {subject}, with changes that are not committed." in text
    assert "Not up to date: make repro would run or restore download, resize, train, evaluate, render" in text
    states = dict(re.findall(r" (\S+/\S+) [0-9a-f]{32}(?:\.dir)? [\d,]+ (yes|no, missing|no, another content)", text))
    assert {path for path, state in states.items() if state == "no, missing"} == {*DATA}
    assert {path for path, state in states.items() if state == "no, another content"} == {"plots/curves.png"}
    assert len(states) == 12


def test_where_git_cannot_answer_the_page_has_its_reason(
    clone: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(".git")
    clone.git("init", "--quiet")
    assert "git says: fatal: your current branch " in report.source()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "git says: fatal: detected dubious ownership " in report.source()


def test_in_a_subfolder_of_a_repository_only_changes_of_the_project_count(
    clone: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = Repository(tmp_path / "top", clone.environment)
    clone.git("clone", "--quiet", ".", str(top.root / "project"))
    shutil.rmtree(top.root / "project/.git")
    (top.root / "other").mkdir()
    (top.root / "params.yaml").write_text("other: {}")
    top.git("init", "--quiet")
    top.commit("Two projects")
    monkeypatch.chdir(top.root / "project")

    top.append("params.yaml", "# A comment.")
    (top.root / "other/file").touch()
    assert report.source().endswith(": Two projects")
    assert "What changed" in Page(report.page("HEAD")).text
    top.append("project/params.yaml", "# A comment.")
    assert report.source().endswith(": Two projects, with changes that are not committed")


# What changed since a revision.


def test_the_comparison_is_that_of_the_tool(
    reproduced: Repository, clone: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = two_revisions(reproduced, tmp_path / "both")
    monkeypatch.chdir(both.root)
    title, *rest = report.blocks(report.compare(HOSTILE))
    text = Page(report.page(HOSTILE)).text
    assert HOSTILE in str(title)
    for block in (title, *rest):
        for row in [[block]] if isinstance(block, str) else block:
            assert " ".join(" ".join(row).split()) in text
    assert " train.lr 0.05 0.1 " in text
    assert "a real difference" in text
    assert "What changed" not in Page(report.page(None)).text


# Nothing gets out of the page, and nothing into it that it does not hold.


def test_hostile_names_are_only_text(
    reproduced: Repository, clone: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = two_revisions(reproduced, tmp_path / "both")
    both.git("commit", "--quiet", "--allow-empty", "--message", '<img src="x" onerror="alert(2)">&amp;')
    monkeypatch.chdir(both.root)
    monkeypatch.setattr(report, "datasets", lambda results: {HOSTILE: "<!--"})
    page = Page(report.page(HOSTILE))
    assert len(page.all("img")) == 1
    assert len(page.scripts) == 3
    assert page.all("b") == []
    assert " runtime.device '<b>cpu</b>' 'auto' " in page.text
    assert '<img src="x" onerror="alert(2)">&amp;' in page.text
    assert json.loads(page.scripts[0]) == {HOSTILE: "<!--"}


def test_no_address_is_in_the_page_but_names_that_nothing_fetches(made: SimpleNamespace) -> None:
    library = made.page.scripts[-1]
    named = {
        "www.w3.org/1999/xlink",
        "www.w3.org/2000/svg",
        "www.w3.org/2000/xmlns/",
        "vega.github.io/schema/vega/v6.json",
    }
    only_shown = {"vega.github.io/editor/", "github.com/vega/vega-lite/issues/2415"}  # a menu that is off, a warning
    assert {*re.findall(r"https?://([\w./-]+)", library)} == named | only_shown
    assert "//" not in re.sub(r'base64,[^"]*', "", made.content.decode().replace(library, ""))
    assert [attributes for tag, attributes in made.page.tags if {"href", "src", "action"} & attributes.keys()] == [
        {"class": "skip", "href": "#main"},
        *made.page.all("img"),
    ]


def test_the_policy_allows_the_one_script_and_no_request(made: SimpleNamespace) -> None:
    (policy,) = [meta["content"] for meta in made.page.all("meta") if "http-equiv" in meta]
    digest = base64.b64encode(hashlib.sha256(made.page.scripts[-1].encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_page_is_light(made: SimpleNamespace) -> None:
    assert len(made.content) - len((made.root / "plots/errors.png").read_bytes()) * 4 / 3 < 1_000_000


# What is refused.


def replaced(path: str, old: str, new: str) -> Callable[[], object]:
    def damage() -> None:
        text = Path(path).read_text()
        assert re.search(old, text), f"{old} is not in {path}"
        Path(path).write_text(re.sub(old, new, text, count=1))

    return damage


def cut(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:-20])


def test_a_missing_result_is_refused(clone: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("plots/errors.png", "plots/predictions.csv", "plots/history.csv", "metrics/train.json"):
        Path(path).unlink()
        message = refusal(monkeypatch)
        assert message.startswith(f"{path}: expected a ")
        assert re.search("run `(make|dvc) repro`", message)


METRICS = "expected metrics, found otherwise: "
OTHERWISE = "expected what params.yaml and metrics/ say, found otherwise: run `make repro`"


@pytest.mark.parametrize(
    ("path", "damage", "found"),
    [
        ("metrics/evaluate.json", cut("metrics/evaluate.json"), METRICS),
        ("metrics/evaluate.json", replaced("metrics/evaluate.json", '"accuracy": .*', '"accuracy": NaN,'), METRICS),
        ("metrics/evaluate.json", replaced("metrics/evaluate.json", '"accuracy": .*', '"accuracy": 1.5,'), METRICS),
        ("metrics/train.json", replaced("metrics/train.json", "train_loss", "loss"), METRICS),
        ("plots/history.csv", replaced("metrics/train.json", r'"train_loss": \d', '"train_loss": 9'), OTHERWISE),
        ("plots/history.csv", replaced("plots/history.csv", r"1,[\d.]+", "1,inf"), OTHERWISE),
        ("plots/history.csv", replaced("plots/history.csv", "\n1,.*", ""), OTHERWISE),
        ("plots/predictions.csv", replaced("plots/predictions.csv", "\n[a-z]+,", "\nhat,"), OTHERWISE),
        ("plots/predictions.csv", replaced("params.yaml", "batch_index: 0", "batch_index: 1"), OTHERWISE),
        ("plots/errors.png", cut("plots/errors.png"), OTHERWISE),
        ("params.yaml", replaced("params.yaml", "lr: ", "rl: "), "train.rl: unknown key"),
        ("dvc.lock", Path("dvc.lock").unlink, "expected hash and size of data/raw, found none: run `make repro`"),
    ],
)
def test_a_result_that_is_malformed_or_contradicts_another_is_refused_by_its_name(
    clone: Repository, monkeypatch: pytest.MonkeyPatch, path: str, damage: Callable[[], object], found: str
) -> None:
    damage()
    assert refusal(monkeypatch).startswith(f"{path}: {found}")
    assert not Path("report.html").exists()


def test_a_dvc_at_work_is_named(clone: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Path(".dvc/tmp/lock")
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal(monkeypatch).startswith("expected `dvc status` to work, found: Unable to acquire lock.")


def test_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(monkeypatch) == "params.yaml: expected a file, found none: run from the top of the repository"


def test_results_that_are_not_committed_are_not_compared(clone: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    clone.append("params.yaml", "# A comment.")
    assert refusal(monkeypatch, "HEAD").startswith("params.yaml: expected as in HEAD, found changed: ")
    run(monkeypatch)


@pytest.mark.parametrize("output", ["none/report.html", "metrics/evaluate.json"])
def test_a_place_that_is_no_page_s_is_refused(clone: Repository, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    message = refusal(monkeypatch, "--output", output)
    assert message == f"{output}: expected a name that ends in .html in a folder that exists"
    assert clone.changed() == set()


# The former page.


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device", "report.html"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["vl_convert.javascript_bundle", "os.fsync"])
def test_an_interrupted_run_leaves_the_former_page(
    clone: Repository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: BaseException,
    place: str,
) -> None:
    Path("report.html").write_text("former")

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(place, fail)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch)
    if isinstance(fault, OSError):
        assert caught.value.args == ("report: report.html: No space left on device",)
    else:
        assert (caught.value.code, capsys.readouterr().err) == (130, "report: interrupted\n")
    assert Path("report.html").read_text() == "former"
    assert [*Path.cwd().glob("report*")] == [Path.cwd() / "report.html"]
