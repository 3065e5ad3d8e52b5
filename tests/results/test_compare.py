"""The comparison of two revisions: its statistics, what it prints, what it reads, and what it refuses."""

import html
import io
import json
import math
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT, Repository
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from numpy.typing import NDArray
from scipy.stats import binomtest

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import csv_bytes
from tools.results.compare import Paired, compare, holm, main, markdown, mcnemar, paired, text

EXAMPLES = 600
ACTUAL = np.arange(EXAMPLES) % 10
OLD = np.where(np.arange(EXAMPLES) % 7 == 0, 9 - ACTUAL, ACTUAL)  # wrong on every seventh example
PARAMS = "evaluate:\n  batch_size: 256\n  batch_index: 0\ntrain:\n  lr: 0.1\n"
LABELS = st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=60).map(lambda rows: np.array(rows).T)
COUNTS = st.integers(0, 300)
REPEATABLE = settings(derandomize=True, deadline=None)


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


def mended(*, batch: int, rest: int) -> NDArray[np.int64]:
    """Return old's predictions with so many errors mended among the first 256 and the other examples, and one made."""
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


def fault(old: str, new: str = "HEAD") -> str:
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


# Statistics


@REPEATABLE
@given(COUNTS, COUNTS)
def test_the_p_value_is_the_tail_of_the_binomial_distribution_doubled(only_old: int, only_new: int) -> None:
    n = only_old + only_new
    tail = sum(math.comb(n, k) for k in range(min(only_old, only_new) + 1))

    assert mcnemar(only_old, only_new) == pytest.approx(float(min(Fraction(2 * tail, 2**n), Fraction(1))), rel=1e-9)


@REPEATABLE
@given(COUNTS, COUNTS)
def test_the_p_value_does_not_change_when_the_revisions_are_swapped(only_old: int, only_new: int) -> None:
    assert mcnemar(only_old, only_new) == mcnemar(only_new, only_old)


def test_without_an_example_that_only_one_got_right_the_p_value_is_1() -> None:
    assert mcnemar(0, 0) == 1


@REPEATABLE
@given(LABELS)
def test_the_counts_add_up(labels: NDArray[np.int64]) -> None:
    actual, old, new = labels
    pair = paired(actual, old, new)

    triples = list(zip(*labels.tolist(), strict=True))
    assert pair.examples == len(triples)
    assert pair.old_correct == sum(a == o for a, o, _ in triples)
    assert pair.new_correct == sum(a == n for a, _, n in triples)
    assert pair.only_old == sum(a == o != n for a, o, n in triples)
    assert pair.only_new == sum(a == n != o for a, o, n in triples)
    assert pair.differing == sum(o != n for _, o, n in triples)
    assert pair.new_correct - pair.old_correct == pair.only_new - pair.only_old
    assert (pair.old_accuracy, pair.new_accuracy) == (np.mean(actual == old), np.mean(actual == new))


@REPEATABLE
@given(LABELS)
def test_swapping_the_revisions_swaps_the_counts_and_nothing_else(labels: NDArray[np.int64]) -> None:
    actual, old, new = labels
    there, back = paired(actual, old, new), paired(actual, new, old)

    assert (back.only_old, back.only_new) == (there.only_new, there.only_old)
    assert (back.old_accuracy, back.old_interval) == (there.new_accuracy, there.new_interval)
    assert (back.p_value, back.differing) == (there.p_value, there.differing)


@REPEATABLE
@given(LABELS)
def test_the_intervals_are_scipy_s_wilson_intervals(labels: NDArray[np.int64]) -> None:
    pair = paired(*labels)

    for correct, interval in ((pair.old_correct, pair.old_interval), (pair.new_correct, pair.new_interval)):
        expected = binomtest(correct, pair.examples).proportion_ci(method="wilson")
        assert interval == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_holm_s_procedure_on_an_example_worked_by_hand() -> None:
    # In ascending order 0.01 * 4, 0.02 * 3, 0.03 * 2 and 0.5 * 1: the third, 0.06, is not below the second.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # 0.02 * 3 = 0.06 holds the next up, 0.021 * 2 = 0.042; 0.4 * 1 is above both.
    assert holm([0.4, 0.021, 0.02]) == pytest.approx([0.4, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


@REPEATABLE
@given(st.lists(st.floats(0, 1), max_size=10), st.floats(0, 0.99))
def test_holm_s_adjusted_p_values_reject_what_his_sequential_procedure_rejects(
    p_values: list[float], alpha: float
) -> None:
    rejected = set()
    for rank, (p, i) in enumerate(sorted((p, i) for i, p in enumerate(p_values))):
        if p * (len(p_values) - rank) > alpha:
            break
        rejected.add(i)

    assert {i for i, adjusted in enumerate(holm(p_values)) if adjusted <= alpha} == rejected


def test_importing_the_command_does_not_load_scipy_which_takes_longer_than_all_the_rest() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, tools.results.compare; assert 'scipy' not in sys.modules"], check=True
    )


# Verdicts


def pair(examples: int, old_correct: int, only_old: int, only_new: int, differing: int) -> Paired:
    new_correct = old_correct - only_old + only_new
    return Paired(examples, old_correct, new_correct, only_old, only_new, differing, mcnemar(only_old, only_new))


def test_a_small_difference_is_within_noise_whose_size_is_given() -> None:
    small = pair(256, 214, only_old=2, only_new=4, differing=6)

    interval = binomtest(216, 256).proportion_ci(method="wilson")
    half = round(50 * (interval.high - interval.low), 1)
    assert small.verdict == (
        "within noise (p-value 0.688): one of 256 examples is 0.39 points, "
        f"the 95 % interval about {half} points either way"
    )


@pytest.mark.parametrize(("examples", "one"), [(1, "100"), (10_000, "0.01"), (300, "0.33")])
def test_the_size_of_one_example_is_computed_and_readable(examples: int, one: str) -> None:
    assert f"one of {examples} examples is {one} points" in pair(examples, 1, 1, 0, 1).verdict


@pytest.mark.parametrize(("only_old", "only_new", "direction"), [(10, 30, "better"), (30, 10, "worse")])
def test_a_real_difference_has_a_direction(only_old: int, only_new: int, direction: str) -> None:
    expected = f"a real difference (p-value 0.00222): new is 2 points {direction}"
    assert pair(1000, 800, only_old, only_new, 40).verdict == expected


@pytest.mark.parametrize(("only_new", "verdict"), [(5, "within noise (p-value 0.0625)"), (6, "a real difference")])
def test_the_limit_is_a_p_value_of_five_per_cent(only_new: int, verdict: str) -> None:
    assert pair(256, 200, 0, only_new, only_new).verdict.startswith(verdict)  # 2 / 2^5 and 2 / 2^6


def test_only_equal_predictions_are_called_identical() -> None:
    assert pair(256, 200, 0, 0, differing=0).verdict == "identical predictions"
    assert pair(256, 200, 0, 0, differing=1).verdict.startswith("within noise (p-value 1)")  # both wrong, differently


def test_a_p_value_too_small_for_a_float_is_not_called_zero() -> None:
    assert "(p-value <1e-300)" in pair(10_000, 1000, 0, 5000, 5000).verdict


# What is compared


def test_both_sets_are_compared_and_the_parameters_named(repository: Repository) -> None:
    write(repository, mended(batch=10, rest=20), PARAMS.replace("0.1", "0.20") + "  sigma: 1\n")
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


def test_a_comment_or_another_way_to_write_a_value_is_no_difference(repository: Repository) -> None:
    write(repository, OLD, "# One.\n" + PARAMS.replace("0.1", "0.10 # Two."))
    repository.commit("Comments")

    assert compare("old").parameters == []
    assert "The parameters are the same." in text(compare("old"))


def test_classes_are_said_to_have_moved_by_their_adjusted_p_values_only(repository: Repository) -> None:
    old, new = ACTUAL.copy(), ACTUAL.copy()
    for k, errors in ((0, 12), (1, 5), (2, 6)):
        new[k : 10 * errors : 10] = 9
    old[4], new[4] = 8, 9  # both wrong: no example of coat that only one got right
    for predicted in (old, new):
        write(repository, predicted)
        repository.commit("Predictions")

    classes = compare("HEAD~1").classes
    assert [(change.name, change.paired.only_old) for change in classes] == [
        ("t-shirt", 12),
        ("pullover", 6),
        ("trouser", 5),
    ]
    assert [change.paired.p_value for change in classes] == pytest.approx([2 / 2**12, 2 / 2**6, 2 / 2**5])
    assert [change.adjusted_p_value for change in classes] == pytest.approx([3 * 2 / 2**12, 2 * 2 / 2**6, 2 / 2**5])
    assert [change.moved for change in classes] == [True, False, False]
    assert {change.paired.examples for change in classes} == {60}
    assert "Classes that moved: t-shirt (adjusted p below 0.05; 3 classes compared)." in text(compare("HEAD~1"))
    assert [change.name for change in compare("HEAD", "HEAD~1").classes] == ["t-shirt", "pullover", "trouser"]

    new[: 10 * 12 : 10] = 0
    write(repository, new)
    repository.commit("Mend one class")
    assert "Classes that moved: none (adjusted p below 0.05; 2 classes compared)." in text(compare("HEAD~2"))


@pytest.mark.parametrize(
    ("now", "start", "stop"),
    [("256\n  batch_index: 1", 256, 512), ("100\n  batch_index: 0", 0, 100), ("512\n  batch_index: 1", 512, 600)],
)
def test_different_batches_are_compared_on_new_s(repository: Repository, now: str, start: int, stop: int) -> None:
    new = mended(batch=10, rest=20)
    write(repository, new, PARAMS.replace("256\n  batch_index: 0", now))
    repository.commit("Another batch")

    comparison = compare("old")
    assert comparison.batch == paired(ACTUAL[start:stop], OLD[start:stop], new[start:stop])
    assert text(comparison).count("The revisions have different validation batches: both are compared on new's.") == 1
    assert compare("HEAD", "old").batch.examples == 256
    assert "batches" not in text(compare("old", "old"))


def test_a_revision_is_identical_to_itself(repository: Repository) -> None:
    comparison = compare("old")

    assert (comparison.batch.verdict, comparison.validation.verdict) == ("identical predictions",) * 2
    assert comparison.classes == []
    assert "class" not in text(comparison)


# What is printed


def test_the_text_has_aligned_tables_with_what_was_counted(repository: Repository) -> None:
    write(repository, mended(batch=10, rest=20), PARAMS.replace("0.1", "0.2"))
    repository.commit("New")

    printed = command("old")
    assert printed == text(compare("old")) + "\n"
    old, new = (repository.git("rev-parse", "--short", name).strip() for name in ("old", "HEAD"))
    assert printed.startswith(f"Old: old ({old}), new: HEAD ({new})\n\n")
    assert re.search(r"^train\.lr +0\.1 +0\.2$", printed, re.MULTILINE)
    (row,) = re.findall("^validation batch .*", printed, re.MULTILINE)
    right = int((OLD == ACTUAL)[:256].sum())
    intervals = [binomtest(n, 256).proportion_ci(method="wilson") for n in (right, right + 9)]
    cells = re.split("  +", row)
    assert cells[1:4] == ["256", f"{right / 256:.4f}", f"{intervals[0].low:.4f} to {intervals[0].high:.4f}"]
    assert cells[4:] == [
        f"{(right + 9) / 256:.4f}",
        f"{intervals[1].low:.4f} to {intervals[1].high:.4f}",
        "1",
        "10",
        "0.0117",
    ]
    assert f"Validation batch: {compare('old').batch.verdict}.\n" in printed
    assert f"Validation set: {compare('old').validation.verdict}.\n" in printed
    for table in (block.splitlines() for block in printed.split("\n\n") if "   " in block):
        assert len({len(line) for line in table}) == 1
    assert max(map(len, printed.splitlines())) < 140


def test_the_markdown_renders_as_the_tables_of_the_text(repository: Repository) -> None:
    write(repository, mended(batch=10, rest=20), PARAMS.replace("0.1", "0.2"))
    repository.commit("New")

    printed = command("old", "HEAD", "--markdown")
    assert printed == markdown(compare("old")) + "\n"
    rendered = MarkdownIt("commonmark").enable("table").render(printed)
    of_text = [block.splitlines() for block in text(compare("old")).split("\n\n") if "   " in block]
    assert len(tables(rendered)) == 3
    for table, lines in zip(tables(rendered), of_text, strict=True):
        assert [[cell for cell in row if cell] for row in table] == [re.split("  +", line.strip()) for line in lines]
        assert len({len(row) for row in table}) == 1
    title, *_ = text(compare("old")).split("\n")
    assert rendered.startswith(f"<h3>{title}</h3>")
    assert f"<p>Validation set: {compare('old').validation.verdict}.</p>" in rendered


def test_names_and_values_cannot_change_the_markdown(repository: Repository) -> None:
    value = "a|`b`<i>_c_\\**d**"
    write(repository, OLD, PARAMS + f"  note: '{value}'\n")
    repository.commit("New")
    repository.git("tag", "t|<b>`x`_y_&amp;")

    rendered = MarkdownIt("commonmark").enable("table").render(markdown(compare("old", "t|<b>`x`_y_&amp;")))
    assert tables(rendered)[0] == [["parameter", "old", "new"], ["train.note", "nothing", repr(value)]]
    assert "new: t|&lt;b&gt;`x`_y_&amp;amp; (" in rendered
    assert not re.search("<(code|em|strong|b|i)>", rendered)


def test_a_hash_is_shown_once(repository: Repository) -> None:
    commit = repository.git("rev-parse", "HEAD").strip()
    short_hash = repository.git("rev-parse", "--short", "HEAD").strip()

    assert str(compare(commit).old) == str(compare(short_hash).old) == short_hash


def test_the_process_prints_to_stdout_or_one_line_to_stderr(repository: Repository) -> None:
    command = [sys.executable, "-m", "tools.results.compare", "old"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, text(compare("old")) + "\n", "")

    failed = subprocess.run([*command, "none"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", f"compare: {fault('old', 'none')}\n")


# Where it is read from


@pytest.fixture
def changed(repository: Repository) -> Repository:
    """The repository with a second commit."""
    write(repository, mended(batch=10, rest=20))
    repository.commit("New")
    return repository


def test_a_bare_clone_suffices(changed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compare("old")
    changed.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare"))
    monkeypatch.chdir(tmp_path / "bare")

    assert compare("old") == expected
    assert command("old") == text(expected) + "\n"


def test_a_subfolder_will_do(changed: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compare("old")
    monkeypatch.chdir("plots")

    assert compare("old") == expected
    (changed.root / "params.yaml").unlink()
    assert "params.yaml: expected as in HEAD" in refused("old")


@pytest.mark.parametrize("name", ["HEAD~1", "HEAD^", "annotated", "side", "refs/tags/old", "main@{1}", "-x"])
def test_whatever_git_knows_as_a_commit_will_do(changed: Repository, name: str) -> None:
    changed.git("tag", "--annotate", "--message=Old", "annotated", "old")
    changed.git("branch", "side", "old")
    changed.git("update-ref", "refs/tags/-x", "old")

    assert compare(name).old.commit == changed.git("rev-parse", "old").strip()
    assert command("--", name) == text(compare(name)) + "\n"


def test_the_name_of_an_experiment_will_do(changed: Repository) -> None:
    changed.git("update-ref", "refs/exps/ab/cdef/brave-lion", "old")
    changed.git("update-ref", "refs/exps/ab/cdef/brave-lioness", "HEAD")

    assert compare("brave-lion").validation == compare("old").validation
    assert str(compare("brave-lion").old) == str(compare("old").old).replace("old", "brave-lion")


def test_an_experiment_s_name_that_two_commits_have_is_refused_with_their_hashes(changed: Repository) -> None:
    changed.git("update-ref", "refs/exps/ab/cdef/brave-lion", "old")
    changed.git("update-ref", "refs/exps/01/2345/brave-lion", "HEAD")

    message = fault("brave-lion")
    assert message.startswith("'brave-lion': expected one experiment of this name, found 2")
    assert all(changed.git("rev-parse", name).strip() in message for name in ("old", "HEAD"))


def test_nothing_is_written(changed: Repository) -> None:
    def state() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in changed.root.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    os.utime(changed.root / "plots/predictions.csv", (0, 0))  # Git's index has another time, and could be refreshed
    before = state()

    command("old")
    refused("none")
    assert state() == before


def test_the_pipeline_s_revisions_are_compared_as_its_metrics_have_them(
    pipeline: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pipeline.root)
    for name, value in pipeline.environment.items():
        monkeypatch.setenv(name, value)
    pipeline.git("tag", "start")
    pipeline.dvc("exp", "run", "--quiet", "--name", "fast", "--set-param", "train.lr=0.002")
    pipeline.commit("Learn slowly")
    try:
        comparison, experiment = compare("start"), compare("start", "fast")
    finally:
        pipeline.dvc("exp", "remove", "--quiet", "fast")

    old, new = (json.loads(pipeline.git("show", f"{name}:metrics/evaluate.json")) for name in ("start", "HEAD"))
    for name, pair in (("batch", comparison.batch), ("validation", comparison.validation)):
        assert (pair.examples, pair.old_correct) == (old[name]["examples"], old[name]["correct"])
        assert pair.new_correct == new[name]["correct"] != pair.old_correct
        assert pair.new_interval == pytest.approx((new[name]["accuracy_low"], new[name]["accuracy_high"]), abs=1e-6)
    assert comparison.parameters == [("train.lr", "0.1", "0.002")]
    assert (experiment.validation, experiment.classes) == (comparison.validation, comparison.classes)
    assert str(experiment.new).startswith("fast (")


# What is refused


@pytest.mark.parametrize("name", ["none", "--all", "^old", "old..HEAD", "HEAD:params.yaml", "", "*", "0" * 40, "a\nb"])
def test_a_name_of_no_commit_is_refused_with_what_to_do(changed: Repository, name: str) -> None:
    message = fault(name)

    assert message.startswith(f"{name!r}: expected a commit, branch, tag or DVC experiment, found none of this name")
    assert message.endswith("run `git fetch`, or correct the spelling")
    assert refused("--", "old", name) == f"compare: {message}"


def test_a_commit_that_a_shallow_clone_lacks_is_refused_with_how_to_get_it(
    changed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed.git("clone", "--quiet", "--depth=1", changed.root.as_uri(), str(tmp_path / "shallow"))
    monkeypatch.chdir(tmp_path / "shallow")

    assert fault("HEAD~1").endswith("in this shallow clone: run `git fetch --unshallow`")
    subprocess.run(["git", "fetch", "--quiet", "--unshallow"], check=True)
    assert compare("HEAD~1").validation.only_new == 30


def test_a_revision_without_predictions_is_refused(changed: Repository) -> None:
    changed.git("rm", "--quiet", "plots/predictions.csv")
    changed.commit("No predictions")

    short_hash = changed.git("rev-parse", "--short", "HEAD").strip()
    assert fault("HEAD") == (
        f"HEAD ({short_hash}): expected plots/predictions.csv in it, found none: "
        "name a revision in which the results of `dvc repro` are committed"
    )
    write(changed, OLD)  # and unknown to Git
    assert refused("old") == f"compare: {fault('HEAD')}"


@pytest.mark.parametrize("folder", [".", "plots"])
def test_a_revision_whose_predictions_git_cannot_read_is_refused_with_its_reason(
    changed: Repository, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(folder)
    blob = changed.git("rev-parse", "HEAD:plots/predictions.csv").strip()
    (changed.root / ".git/objects" / blob[:2] / blob[2:]).unlink()

    assert "expected plots/predictions.csv in it, but git says: " in fault("HEAD")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "found the columns '' and 0 rows"),
        (b"actual,predicted\n", "found the columns 'actual,predicted' and 0 rows"),
        (b"predicted,actual\nbag,bag\n", "found the columns 'predicted,actual' and 1 rows"),
        (b"actual,predicted\nbag,bag\nbag,bags\n", "found no two classes in line 3: 'bag,bags'"),
        (b"actual,predicted\nbag,bag,bag\n", "found no two classes in line 2: 'bag,bag,bag'"),
        (b"actual,predicted\n<<<<<<< HEAD\nbag,bag\n", "found no two classes in line 2: '<<<<<<< HEAD'"),
        (b"actual,predicted\nbag,bag\n\n", "found no two classes in line 3: ''"),
        (b"actual,predicted\nbag,\xff\n", "can't decode byte 0xff"),
        (b"actual,predicted\nbag," + b"b" * 200_000 + b"\n", "field larger than field limit"),
    ],
    ids=["empty", "no rows", "columns", "class", "cells", "conflict", "blank", "encoding", "cell"],
)
def test_malformed_predictions_are_refused_with_what_is_wrong(
    repository: Repository, content: bytes, found: str
) -> None:
    (repository.root / "plots/predictions.csv").write_bytes(content)
    repository.commit("Malformed")

    assert fault("HEAD", "old").startswith("HEAD (")
    assert f"): expected plots/predictions.csv as the pipeline writes it, but {found[:9]}" in fault("old").replace(
        "'utf-8' codec ", ""
    )
    assert found in fault("old")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("evaluate: [", "but while parsing a flow node"),
        ("- evaluate", "but found no sections with keys"),
        ("evaluate: 256", "but found no sections with keys"),
        ("", "but found no sections with keys"),
        (PARAMS + "  lr: 0.2\n", "but found a key more than once"),
        (PARAMS + "train: {lr: 0.2}\n", "but found no sections with keys"),
        (PARAMS + "  note: !!python/name:os.system x\n", "but could not determine a constructor"),
        (PARAMS.replace("256", "0"), "found 0 and 0"),
        (PARAMS.replace("256", "true"), "found true and 0"),
        (PARAMS.replace("256", "2.5"), "found 2.5 and 0"),
        (PARAMS.replace("  batch_size: 256\n", ""), "found nothing and 0"),
        (PARAMS.replace("index: 0", "index: 3"), "found 256 and 3"),
        (PARAMS.replace("index: 0", "index: -1"), "found 256 and -1"),
    ],
)
def test_malformed_parameters_are_refused_with_what_is_wrong(repository: Repository, content: str, found: str) -> None:
    write(repository, OLD, content)
    repository.commit("Malformed")

    for message in (fault("old"), fault("HEAD", "old")):
        assert re.match(r"HEAD \(\w+\): (expected )?params\.yaml", message)
        assert found in message


def test_other_examples_are_refused(repository: Repository) -> None:
    write(repository, OLD[:-1], actual=ACTUAL[:-1])
    repository.commit("One less")
    assert re.search(
        r"expected the same examples in both revisions, found 600 in old \(\w+\) and 599 in HEAD", fault("old")
    )

    shuffled = ACTUAL.copy()
    shuffled[[7, 8]] = shuffled[[8, 7]]
    write(repository, OLD, actual=shuffled)
    repository.commit("Another order")
    assert "found two classes in line 9: compare revisions with the same data set in the same order" in fault("old")


@pytest.mark.parametrize("path", ["plots/predictions.csv", "params.yaml"])
@pytest.mark.parametrize("change", ["edited", "staged", "deleted"])
def test_a_changed_working_tree_is_refused_unless_new_is_named(changed: Repository, path: str, change: str) -> None:
    expected = compare("old")
    if change == "deleted":
        (changed.root / path).unlink()
    else:
        changed.append(path, "# A comment.")
    if change == "staged":
        changed.git("add", path)

    message = f"compare: {path}: expected as in HEAD, found changed: the comparison is between commits: commit first, "
    assert refused("old") == message + "or give tools.results.compare both revisions"
    assert command("old", "HEAD") == text(expected) + "\n"


def test_other_changes_do_not_matter(changed: Repository) -> None:
    changed.append("plots/history.csv", "unknown to Git")
    changed.append("README.md", "staged")
    changed.git("add", "README.md")

    assert command("old") == command("old", "HEAD")


def test_a_repository_without_commits_is_refused(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.git("init", "--quiet", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path / "empty")

    message = "compare: 'HEAD': expected a commit, found a repository without any: commit the results first"
    assert refused("HEAD") == message


def test_a_folder_outside_any_repository_is_refused(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    monkeypatch.chdir(tmp_path / "outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    assert re.match("compare: 'main': expected a Git repository, but git says: .*: run from the top", refused("main"))


def test_a_machine_without_git_is_refused(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository.root / "plots"))

    assert refused("old") == "compare: expected git on PATH, found none: install it"
