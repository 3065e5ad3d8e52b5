"""The comparison of two revisions: what it reads (tools.results.revisions), prints and refuses."""

import html
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT, Repository
from markdown_it import MarkdownIt
from numpy.typing import NDArray

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import csv_bytes
from stages.model.metrics import wilson_interval
from tools.results.compare import compare, main, text
from tools.results.paired import paired
from tools.results.revisions import parse_predictions, resolve

EXAMPLES = 600
ACTUAL = np.arange(EXAMPLES) % 10
OLD = np.where(np.arange(EXAMPLES) % 7 == 0, 9 - ACTUAL, ACTUAL)  # wrong on every seventh example
PARAMS = "evaluate:\n  batch_size: 256\n  batch_index: 0\ntrain:\n  lr: 0.1\n"


def write(
    repository: Repository, predicted: NDArray[np.int64], params: str = PARAMS, actual: NDArray[np.int64] = ACTUAL
) -> None:
    """Write predictions and parameters as the pipeline does."""
    rows = ((CLASS_NAMES[a], CLASS_NAMES[p]) for a, p in zip(actual, predicted, strict=True))
    (repository.root / "plots").mkdir(exist_ok=True)
    (repository.root / "plots/predictions.csv").write_bytes(csv_bytes(("actual", "predicted"), rows))
    (repository.root / "params.yaml").write_text(params)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Repository:
    """A repository with one commit, the tag old, whose model is wrong on every seventh example; and in it."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name, value in (environment | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    made = Repository(tmp_path / "made", environment)
    made.root.mkdir()
    monkeypatch.chdir(made.root)
    made.git("init", "--quiet", "--initial-branch=main")
    write(made, OLD)
    made.commit("Old")
    made.git("tag", "old")
    return made


@pytest.fixture
def changed(repository: Repository) -> Repository:
    """The repository with a second commit: another model, made with another lr."""
    write(repository, fixed(batch=10, rest=20), PARAMS.replace("0.1", "0.2"))
    repository.commit("New")
    return repository


def fixed(*, batch: int, rest: int) -> NDArray[np.int64]:
    """Return old's predictions with so many errors fixed among the first 256 and the other examples, and one made."""
    new, wrong = OLD.copy(), np.flatnonzero(OLD != ACTUAL)
    chosen = np.concatenate([wrong[wrong < 256][:batch], wrong[wrong >= 256][:rest]])
    new[chosen] = ACTUAL[chosen]
    new[1] = 2
    return new


def command(*words: str) -> str:
    """Return what the command prints."""
    with mock.patch.object(sys, "argv", ["compare", *words]), redirect_stdout(io.StringIO()) as printed:
        main()
    return printed.getvalue()


def refused(*words: str) -> str:
    """Return the one line with which the command refuses."""
    with pytest.raises(SystemExit) as end:
        command(*words)
    assert re.fullmatch(r"compare: .+", str(end.value))
    return str(end.value)


def refusal(old: str, new: str = "HEAD") -> str:
    """Return the one line that a comparison raises."""
    with pytest.raises(UserError) as error:
        compare(old, new)
    assert "\n" not in str(error.value)
    return str(error.value)


def tables(rendered: str) -> list[list[list[str]]]:
    """Return the cells of every table of a page."""
    return [
        [
            [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r"<table>(.*?)</table>", rendered, re.DOTALL)
    ]


# What is compared


def test_both_sets_are_compared_and_the_parameters_named(repository: Repository) -> None:
    write(repository, fixed(batch=10, rest=20), "# One.\n" + PARAMS.replace("0.1", "0.20 # Two.") + "  sigma: 1\n")
    repository.commit("New")

    comparison = compare("old")
    batch, validation = comparison.batch, comparison.validation
    old_correct = int((OLD == ACTUAL)[:256].sum())
    assert (batch.examples, batch.old_correct, batch.new_correct) == (256, old_correct, old_correct + 9)
    assert (batch.only_old, batch.only_new, batch.p_value) == (1, 10, pytest.approx(2 * 12 / 2**11))
    assert (validation.examples, validation.only_old, validation.only_new) == (600, 1, 30)
    assert comparison.parameters == [("train.lr", "0.1", "0.2"), ("train.sigma", "nothing", "1")]
    assert str(comparison.old) == f"old ({repository.git('rev-parse', '--short', 'old').strip()})"
    assert compare("HEAD", "old").parameters == [("train.lr", "0.2", "0.1"), ("train.sigma", "1", "nothing")]


@pytest.mark.parametrize(
    ("now", "start", "stop"), [("100\n  batch_index: 0", 0, 100), ("512\n  batch_index: 1", 512, 600)]
)
def test_different_batches_are_compared_on_new_s(repository: Repository, now: str, start: int, stop: int) -> None:
    new = fixed(batch=10, rest=20)
    write(repository, new, PARAMS.replace("256\n  batch_index: 0", now))
    repository.commit("Another batch")

    comparison = compare("old")
    assert comparison.batch == paired(ACTUAL[start:stop], OLD[start:stop], new[start:stop])
    assert text(comparison).count("The revisions have different validation batches: both are compared on new's.") == 1
    assert compare("HEAD", "old").batch.examples == 256


def test_a_revision_is_identical_to_itself(repository: Repository) -> None:
    commit, short_hash = (repository.git("rev-parse", *words, "HEAD").strip() for words in ([], ["--short"]))
    comparison = compare("old")

    assert (comparison.batch.verdict, comparison.validation.verdict) == ("identical predictions",) * 2
    assert comparison.classes == []
    assert "The parameters are the same." in text(comparison)
    assert not re.search("class|batches", text(comparison))
    assert str(compare(commit).old) == str(compare(short_hash).old) == short_hash


# What is printed


def test_the_text_has_aligned_tables_with_what_was_counted(changed: Repository) -> None:
    printed = command("old")
    assert printed == text(compare("old")) + "\n"
    old, new = (changed.git("rev-parse", "--short", name).strip() for name in ("old", "HEAD"))
    assert printed.startswith(f"Old: old ({old}), new: HEAD ({new})\n\n")
    assert re.search(r"^train\.lr +0\.1 +0\.2$", printed, re.MULTILINE)
    (row,) = re.findall("^validation batch .*", printed, re.MULTILINE)
    correct = int((OLD == ACTUAL)[:256].sum())
    intervals = ["{:.4f} to {:.4f}".format(*wilson_interval(n, 256)) for n in (correct, correct + 9)]
    assert re.split("  +", row)[1:] == [
        "256",
        f"{correct / 256:.4f}",
        intervals[0],
        f"{(correct + 9) / 256:.4f}",
        intervals[1],
        "1",
        "10",
        "0.0117",
    ]
    assert f"Validation batch: {compare('old').batch.verdict}.\n" in printed
    assert re.search(r"Classes that moved: none \(adjusted p below 0\.05; \d+ classes compared\)\.\n", printed)
    for table in (block.splitlines() for block in printed.split("\n\n") if "   " in block):
        assert len({len(line) for line in table}) == 1
    assert max(map(len, printed.splitlines())) < 140


def test_the_markdown_renders_as_the_tables_of_the_text_and_names_cannot_change_it(changed: Repository) -> None:
    value = "a|`b`<i>_c_\\**d**"
    changed.append("params.yaml", f"  note: '{value}'")
    changed.commit("Newer")
    changed.git("tag", "t|<b>`x`_y_&amp;")

    printed = command("old", "t|<b>`x`_y_&amp;", "--markdown")
    rendered = MarkdownIt("commonmark").enable("table").render(printed)
    comparison = compare("old", "t|<b>`x`_y_&amp;")
    of_text = [block.splitlines() for block in text(comparison).split("\n\n") if "   " in block]
    assert len(tables(rendered)) == 3
    for table, lines in zip(tables(rendered), of_text, strict=True):
        assert [[cell for cell in row if cell] for row in table] == [re.split("  +", line.strip()) for line in lines]
        assert len({len(row) for row in table}) == 1
    assert ["train.note", "nothing", repr(value)] in tables(rendered)[0]
    assert re.match(r"<h3>Old: old \(\w+\), new: t\|&lt;b&gt;`x`_y_&amp;amp; \(\w+\)</h3>", rendered)
    assert f"<p>Validation set: {comparison.validation.verdict}.</p>" in rendered
    assert not re.search("<(code|em|strong|b|i)>", rendered)


def test_the_process_prints_to_stdout_or_one_line_to_stderr_and_a_closed_pipe_ends_it(changed: Repository) -> None:
    start = [sys.executable, "-m", "tools.results.compare"]
    done, failed = (subprocess.run([*start, name], capture_output=True, text=True) for name in ("old", "none"))
    assert (done.returncode, done.stdout, done.stderr) == (0, text(compare("old")) + "\n", "")
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", f"compare: {refusal('none')}\n")

    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run([*start, "old"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (-signal.SIGPIPE, "")


# Where it is read from


def test_a_bare_clone_suffices(changed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compare("old")
    changed.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare"))
    monkeypatch.chdir(tmp_path / "bare")

    assert command("old") == text(expected) + "\n"


def test_the_project_may_be_a_subfolder_of_a_repository_with_a_second_project(
    changed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = Repository(tmp_path / "top", changed.environment)
    places = [top.root / name for name in ("", "other", "a project")]
    top.root.mkdir()
    top.git("init", "--quiet")
    for commit in ("old", "main"):
        changed.git("checkout", "--quiet", commit)
        for place in places:
            shutil.copytree(changed.root, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
        for place in places[:2]:  # they hold predictions that are no one's
            (place / "plots/predictions.csv").write_text("none")
        top.commit(commit)
    expected = (compare("old", "main").batch, compare("old", "main").validation)
    monkeypatch.chdir(top.root / "a project")

    (top.root / "other/params.yaml").write_text("changed")
    assert (compare("HEAD~1").batch, compare("HEAD~1").validation) == expected
    assert command("HEAD~1") == command("HEAD~1", "HEAD")
    Path("params.yaml").unlink()
    assert refused("HEAD~1").startswith("compare: params.yaml: expected as in HEAD, found changed: ")
    monkeypatch.chdir(top.root / "other")
    assert "expected other/plots/predictions.csv as the pipeline writes it, but found the columns" in refusal("HEAD")


def test_whatever_git_knows_as_a_commit_and_an_experiment_s_name_will_do(changed: Repository) -> None:
    changed.git("tag", "--annotate", "--message=Old", "annotated", "old")
    changed.git("branch", "side", "old")
    changed.git("update-ref", "refs/tags/-x", "old")
    changed.git("update-ref", "refs/exps/ab/cdef/brave-lion", "old")
    changed.git("update-ref", "refs/exps/ab/cdef/brave-lioness", "HEAD")

    old = changed.git("rev-parse", "old").strip()
    for name in ("HEAD~1", "HEAD^", "annotated", "side", "refs/tags/old", "main@{1}", "-x", "brave-lion"):
        assert resolve(name).commit == old
    assert str(resolve("brave-lion")) == str(resolve("old")).replace("old", "brave-lion")
    assert command("--", "-x") == text(compare("-x")) + "\n"


def test_nothing_is_written(changed: Repository) -> None:
    def state() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in changed.root.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    os.utime(changed.root / "plots/predictions.csv", (0, 0))  # Git's index has another time, and could be refreshed
    before = state()

    command("old")
    refused("none")
    assert state() == before


# What is refused


def test_a_name_of_no_commit_is_refused_with_what_to_do(changed: Repository) -> None:
    for name in ("none", "--all", "^old", "old..HEAD", "HEAD:params.yaml", "", "*", "0" * 40, "a\nb"):
        message = refusal("old", name)
        assert message.startswith(
            f"{name!r}: expected a commit, branch, tag or DVC experiment, found none of this name"
        )
        assert message.endswith("run `git fetch`, or correct the spelling")


def test_an_experiment_s_name_that_two_commits_have_is_refused_with_their_hashes(changed: Repository) -> None:
    changed.git("update-ref", "refs/exps/ab/cdef/brave-lion", "old")
    changed.git("update-ref", "refs/exps/01/2345/brave-lion", "HEAD")

    message = refusal("brave-lion")
    assert message.startswith("'brave-lion': expected one experiment of this name, found 2")
    assert all(changed.git("rev-parse", name).strip() in message for name in ("old", "HEAD"))


def test_a_commit_that_a_shallow_clone_lacks_is_refused_with_how_to_get_it(
    changed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed.git("clone", "--quiet", "--depth=1", changed.root.as_uri(), str(tmp_path / "shallow"))
    monkeypatch.chdir(tmp_path / "shallow")

    assert refusal("HEAD~1").endswith("in this shallow clone: run `git fetch --unshallow`")
    subprocess.run(["git", "fetch", "--quiet", "--unshallow"], check=True)
    assert compare("HEAD~1").validation.only_new == 30


def test_a_revision_without_predictions_is_refused(changed: Repository) -> None:
    changed.git("rm", "--quiet", "plots/predictions.csv")
    changed.commit("No predictions")

    short_hash = changed.git("rev-parse", "--short", "HEAD").strip()
    assert refusal("HEAD") == (
        f"HEAD ({short_hash}): expected plots/predictions.csv in it, found none: "
        "name a revision in which the results of `dvc repro` are committed"
    )


def test_a_revision_whose_predictions_git_cannot_read_is_refused_with_its_reason(changed: Repository) -> None:
    blob = changed.git("rev-parse", "HEAD:plots/predictions.csv").strip()
    (changed.root / ".git/objects" / blob[:2] / blob[2:]).unlink()

    assert "expected plots/predictions.csv in it, but git says: " in refusal("HEAD")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "found the columns '' and 0 rows"),
        ("predicted,actual\nbag,bag\n", "found the columns 'predicted,actual' and 1 rows"),
        ("actual,predicted\nbag,bag\nbag,bags\n", "found no two classes in line 3: 'bag,bags'"),
        ("actual,predicted\n<<<<<<< HEAD\nbag,bag\n", "found no two classes in line 2: '<<<<<<< HEAD'"),
    ],
)
def test_malformed_predictions_are_refused_with_what_is_wrong(content: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(found)}$"):
        parse_predictions(content)


@pytest.mark.parametrize(
    ("path", "content", "found"),
    [
        (
            "plots/predictions.csv",
            b"actual,predicted\nbag,\xff\n",
            "as the pipeline writes it, but 'utf-8' codec can't",
        ),
        (
            "plots/predictions.csv",
            b"actual,predicted\nbag," + b"b" * 200_000,
            "as the pipeline writes it, but field larger",
        ),
        ("params.yaml", b"evaluate: 256", "as the pipeline writes it, but found no sections with keys"),
        ("params.yaml", f"{PARAMS}  lr: 0.2\n".encode(), "as the pipeline writes it, but "),
        ("params.yaml", PARAMS.replace("256", "true").encode(), "600 examples, found true and 0"),
        ("params.yaml", PARAMS.replace("index: 0", "index: 3").encode(), "600 examples, found 256 and 3"),
    ],
)
def test_a_malformed_file_is_refused_with_its_revision_and_what_is_wrong(
    repository: Repository, path: str, content: bytes, found: str
) -> None:
    (repository.root / path).write_bytes(content)
    repository.commit("Malformed")

    assert re.match(rf"HEAD \(\w+\): (expected )?{path}.*{re.escape(found)}", refusal("old"))


def test_other_examples_are_refused(repository: Repository) -> None:
    write(repository, OLD[:-1], actual=ACTUAL[:-1])
    repository.commit("One less")
    found = r"expected the same examples in both revisions, found 600 in old \(\w+\) and 599 in HEAD"
    assert re.search(found, refusal("old"))

    shuffled = ACTUAL.copy()
    shuffled[[7, 8]] = shuffled[[8, 7]]
    write(repository, OLD, actual=shuffled)
    repository.commit("Another order")
    assert "found two classes in line 9: compare revisions with the same data set in the same order" in refusal("old")


@pytest.mark.parametrize("path", ["plots/predictions.csv", "params.yaml"])
def test_a_changed_working_tree_is_refused_unless_new_is_named(changed: Repository, path: str) -> None:
    expected = text(compare("old")) + "\n"
    changed.append("plots/history.csv", "unknown to Git")
    changed.append("README.md", "staged")
    changed.git("add", "README.md")
    assert command("old") == expected

    message = f"compare: {path}: expected as in HEAD, found changed: the comparison is between commits: commit first, "
    changed.append(path, "# A comment.")
    assert refused("old") == message + "or give tools.results.compare both revisions"
    changed.git("add", path)
    assert refused("old").startswith(message)
    (changed.root / path).unlink()
    assert refused("old").startswith(message)
    assert command("old", "HEAD") == expected


def test_git_s_reason_and_remedy_are_passed_on(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("empty", "outside"):
        (tmp_path / name).mkdir()
    repository.git("init", "--quiet", str(tmp_path / "empty"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    monkeypatch.chdir(tmp_path / "empty")
    assert refused("HEAD") == "compare: expected a commit, found a repository without any: commit the results first"
    monkeypatch.chdir(tmp_path / "outside")
    assert re.fullmatch("compare: expected a Git repository, but git says: fatal: not a git .*", refused("main"))
    monkeypatch.chdir(repository.root)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    dubious = "compare: .*git says: fatal: detected dubious ownership in .* git config --global --add safe.directory .*"
    assert re.fullmatch(dubious, refused("HEAD"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused("old") == "compare: expected git on PATH, found none: install it"
