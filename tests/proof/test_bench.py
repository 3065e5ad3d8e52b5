"""The benchmark measures what it says: every contestant learns, counts and ratios are right, each part runs small."""

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Repository, Reproduction, small_data_set

from stages.core.params import Train
from tools.proof import bench, oracle
from tools.proof.bench import BARE, EAGER, JAX, KERAS, TENSORFLOW, Target

ROOT = Path(__file__).resolve().parents[2]
DATA = small_data_set()
HYPER = Train(seed=0, epochs=2, batch_size=256, lr=0.1, sigma=0.01)
IMAGES, LABELS = DATA["train-images-idx3-ubyte"], DATA["train-labels-idx1-ubyte"]


@pytest.fixture
def task() -> bench.Task:
    """Twenty epochs on the small data set, whatever params.yaml says."""
    return bench.Task(IMAGES, LABELS, replace(HYPER, epochs=20, batch_size=64), "cpu")


def accuracy(W: Any, b: Any) -> float:
    unseen, labels = DATA["t10k-images-idx3-ubyte"], DATA["t10k-labels-idx1-ubyte"]
    return float(((unseen.reshape(len(labels), -1) / 256 @ np.asarray(W) + np.asarray(b)).argmax(1) == labels).mean())


@pytest.mark.parametrize("name", [name for name in bench.CONTESTANTS if name != bench.SCIKIT_LEARN])
def test_every_contestant_learns_as_well_as_the_oracle_and_times_each_epoch(name: str, task: bench.Task) -> None:
    seconds, W, b = bench.CONTESTANTS[name](task)
    expected = bench.numpy_oracle(task)

    assert len(seconds) == 20
    assert min(seconds) > 0
    assert (np.shape(W), np.shape(b)) == ((784, 10), (10,))
    assert accuracy(W, b) == pytest.approx(accuracy(expected.W, expected.b), abs=0.05)
    assert accuracy(expected.W, expected.b) > 0.5


@pytest.mark.parametrize("name", [TENSORFLOW, JAX])
def test_the_project_s_rows_give_the_oracle_s_bits(name: str, task: bench.Task) -> None:
    _, W, b = bench.CONTESTANTS[name](task)
    expected = oracle.train(IMAGES, LABELS, seed=0, epochs=20, batch_size=64, lr=0.1, sigma=0.01)

    assert np.asarray(W).tobytes() + np.asarray(b).tobytes() == expected.W.tobytes() + expected.b.tobytes()


def test_scikit_learn_is_asked_for_as_many_epochs_and_takes_part_only_where_it_is(
    task: bench.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SGDClassifier:
        coef_, intercept_ = np.ones((10, 784)), np.zeros(10)

        def __init__(self, *, loss: str, max_iter: int, tol: float | None, random_state: int) -> None:
            assert (loss, max_iter, tol, random_state) == ("log_loss", 20, None, 0)

        def fit(self, X: Any, y: Any) -> None:
            assert (X.shape, X.dtype, y is LABELS) == ((600, 784), np.float32, True)
            time.sleep(0.01)

    monkeypatch.setitem(sys.modules, "sklearn.linear_model", SimpleNamespace(SGDClassifier=SGDClassifier))
    seconds, W, _ = bench.CONTESTANTS[bench.SCIKIT_LEARN](task)
    assert (len(seconds), np.shape(W)) == (20, (784, 10))

    for found in (None, SimpleNamespace()):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        assert ((bench.SCIKIT_LEARN, "cpu") in bench.contestants()) == (found is not None)


@pytest.mark.parametrize(("gpus", "expected"), [(None, set()), (0, set()), (1, {TENSORFLOW, JAX, EAGER, KERAS})])
def test_gpu_rows_appear_where_the_driver_sees_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int | None, expected: set[str]
) -> None:
    monkeypatch.setattr("stages.runtime.devices.driver_gpus", lambda: gpus)

    on_gpu = {name for name, device in bench.contestants() if device == "gpu"}
    assert on_gpu - {"tf.function per step"} == expected


def fit_result(*seconds: float) -> dict[str, Any]:
    return {"seconds": list(seconds), "peak": 900.0, "accuracy": 0.8}


def test_contestants_take_turns_and_are_divided_run_by_run(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[str, ...]] = []
    results = {TENSORFLOW: [fit_result(3.0, 1.0, 2.0), fit_result(2.0, 1.0, 1.0)], JAX: [fit_result(12.0)] * 2}

    def worker(*words: str) -> dict[str, Any]:
        turns.append(words)
        return results[words[1]][len(turns) > 2]

    monkeypatch.setattr(bench, "worker", worker)
    monkeypatch.setattr(bench, "contestants", lambda: [(TENSORFLOW, "cpu"), (JAX, "cpu")])
    figures = bench.measure_fit(2)

    assert turns == [("fit", TENSORFLOW, "cpu"), ("fit", JAX, "cpu")] * 2
    assert figures[TENSORFLOW]["fit s"] == [6.0, 4.0]
    assert figures[TENSORFLOW]["epoch s"] == [1.5, 1.0]  # the median of all but the first
    assert figures[TENSORFLOW]["compile s"] == [1.5, 1.0]
    assert figures[JAX][bench.TIMES] == [2.0, 3.0]


def test_a_gpu_that_cannot_be_used_costs_a_line_and_a_failing_cpu_row_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def worker(part: str, name: str, device: str) -> dict[str, Any]:
        if (name, device) != (TENSORFLOW, "cpu"):
            raise bench.UserError("no CUDA libraries")
        return fit_result(1.0)

    monkeypatch.setattr(bench, "worker", worker)
    monkeypatch.setattr(bench, "contestants", lambda: [(TENSORFLOW, "cpu"), (TENSORFLOW, "gpu")])
    assert list(bench.measure_fit(2)) == [TENSORFLOW]
    assert capsys.readouterr().out == f"{TENSORFLOW}, GPU: not run: no CUDA libraries\n"

    monkeypatch.setattr(bench, "contestants", lambda: [(JAX, "cpu")])
    with pytest.raises(bench.UserError, match="no CUDA libraries"):
        bench.measure_fit(1)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((3, 4, 2), (27, 288, 96)), ((60_000, 1024, 10), (61_740_000, 1_474_560_000, 2_457_600_000))],
)
def test_bytes_and_operations_of_an_epoch_are_those_worked_out_by_hand(
    sizes: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    assert bench.needs(*sizes) == expected


def test_a_copy_counts_every_byte_twice_and_the_warm_up_not(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    copyto = np.copyto

    def recorded(target: Any, source: Any) -> None:
        copied.append(len(source))
        copyto(target, source)
        assert (target == 1).all()

    monkeypatch.setattr(np, "copyto", recorded)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(bench, "timed", lambda copy, times: [copy(), 0.5][1:])

    assert bench.copy_rate(1000, 3) == 2 * 1000 * 3 / 0.5
    assert copied == [500] * 12


def test_every_library_multiplies_in_float64_what_an_epoch_does() -> None:
    pytest.importorskip("stages.model.softmax_jax")  # switches JAX to float64, as the frameworks' epochs do before
    found: dict[str, Any] = {library: both() for library, both in bench.products(2, 5, 7, 3).items()}  # type: ignore[misc]
    assert found.keys() == {"NumPy", "TensorFlow", "JAX"}
    rng = np.random.default_rng(0)
    X, Ws, Ds = rng.standard_normal((5, 7)), rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 5))
    for library, transposed in (("NumPy", (True, True)), ("TensorFlow", (True, False)), ("JAX", (False, False))):
        for product, expected, turned in zip(found[library], (Ws[1] @ X.T, Ds[1] @ X), transposed, strict=True):
            assert product.dtype == np.float64
            np.testing.assert_allclose(product.T if turned else product, expected, rtol=1e-13)


def test_time_is_counted_once_under_the_outermost_kind_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = bench.Clock()
    imported = clock.counting(bench.IMPORTS, lambda: 7)
    read = clock.counting(bench.READING, lambda: imported())

    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        clock.counting(bench.WRITING, fails)()
    assert read() == 7
    assert imported() == 7
    assert clock.seconds == {bench.IMPORTS: 1, bench.READING: 1, bench.WRITING: 1}


def figures(**columns: list[float]) -> dict[str, list[float]]:
    return {name.replace("_", " "): values for name, values in columns.items()}


def test_targets_are_compared_with_medians_and_the_short_commands_by_minima() -> None:
    gpu = f"{JAX}, GPU"
    parts = {
        "fit": {
            EAGER: {bench.TIMES: [1.0, 15.0, 99.0]},
            KERAS: {bench.TIMES: [4.9]},
            JAX: {bench.TIMES: [1.0]},
            gpu: figures(fit_s=[1.0, 2.0], compile_s=[0.4, 1.6], epoch_s=[0.03, 0.03]),
        },
        "floor": {TENSORFLOW: {"epoch / floor": [3.0]}, JAX: {"epoch / floor": [3.1]}},
        "stages": {"train": {"peak MB": [1700.0]}, BARE: {"peak MB": [700.0]}},
        "repro": {
            bench.COLD: {bench.PER_IMPORT: [3.7]},
            bench.LR: {bench.PER_IMPORT: [2.8]},
            bench.NOTHING: {"s": [1.5, 1.0]},
            bench.STATUS: {"s": [0.75, 2.0]},
        },
        "growth": {
            f"{TENSORFLOW}, 4": {"growth": [1.0]},
            f"{TENSORFLOW}, 64": {"growth": [1.25]},
            f"{JAX}, 4": {"growth": [1.5]},
            f"{JAX}, 1": {"ns a pixel": [9.0]},
        },
    }
    found = bench.targets(parts)

    expected = [
        (15.0, True), (4.9, False), (1.0, True), (0.03, True), (0.5, True), (3.0, True), (3.1, False), (1000.0, True),
        (3.7, False), (2.8, True), (0.25, True), (1.25, True), (1.5, False),
    ]  # fmt: skip
    assert [(pytest.approx(target.measured), target.met) for target in found] == expected
    assert bench.targets({"growth": parts["growth"]}) == found[-2:]


def test_tables_are_aligned_and_show_the_spread() -> None:
    part = {"a": {"x s": [1.0, 3.0, 2.0], "y": [123.4]}, "longer": {"y": [0.00123]}}
    assert bench.figures_table("part", part).splitlines() == [
        "part           x s        y",
        "a       2 (1 to 3)      123",
        "longer              0.00123",
    ]
    table = bench.targets_table([Target("a", 2.0, 1.0), Target("bb", 2.0, 1.5, at_least=True)])
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["a", "2", "<=", "1", "missed"],
        ["bb", "2", ">=", "1.5", "met"],
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder with 600 training images of 28x28."""
    monkeypatch.chdir(tmp_path)
    bench.RESIZED.mkdir(parents=True)
    np.savez(bench.RESIZED / "train.npz", images=IMAGES, labels=LABELS)
    monkeypatch.setattr(bench, "load_params", lambda: SimpleNamespace(train=HYPER))
    return tmp_path


def medians(figures: bench.Figures) -> dict[str, dict[str, float]]:
    return {row: {name: statistics.median(v) for name, v in columns.items()} for row, columns in figures.items()}


@pytest.fixture
def small(pipeline: Repository, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """In the small pipeline, whose modules the benchmark's processes then import; a quick import is the bare one."""
    for name, value in pipeline.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(pipeline.root)
    monkeypatch.setattr(bench, "ROOT", pipeline.root)
    monkeypatch.setattr(bench, "BARE", "import wave")
    return pipeline


def run(part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Run a part once and return its figures, of which the table and the JSON file have every one."""
    found: list[bench.Figures] = []
    measure = bench.PARTS[part]
    monkeypatch.setitem(bench.PARTS, part, lambda runs: [found.append(measure(runs)), found[0]][1])
    bench.bench([part], "1", Path("figures.json"))
    written = json.loads(Path("figures.json").read_text())

    assert bench.figures_table(part, found[0]) in capsys.readouterr().out
    assert written["train"]["epochs"] == 2
    assert written["parts"].keys() == {part}
    assert written["parts"][part] == {
        row: {
            name: {kind: round(value, 6) for kind, value in bench.summary(values).items()}
            for name, values in columns.items()
        }
        for row, columns in found[0].items()
    }
    return medians(found[0])


def test_fit_runs_each_contestant_in_a_process_of_its_own(
    small: Repository, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [TENSORFLOW, "NumPy oracle"]
    monkeypatch.setattr(bench, "contestants", lambda: [(name, "cpu") for name in names])
    monkeypatch.setattr(bench, "targets", lambda parts: [])
    measured = run("fit", capsys, monkeypatch)

    committed = json.loads((small.root / "metrics/train.json").read_text())["validation_accuracy"]
    assert {row: round(columns["accuracy"], 6) for row, columns in measured.items()} == dict.fromkeys(names, committed)
    assert measured[TENSORFLOW]["peak MB"] > 2 * measured["NumPy oracle"]["peak MB"] > 0


def test_floor_is_the_slowest_of_memory_cache_and_the_best_library_s_products(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "MEMORY_BYTES", 2**20)
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(bench, "SQUARE", 32)
    rows = medians(bench.work_floor(1))

    at_task = [columns["epoch ms"] for row, columns in rows.items() if "(10,784)x(784,256)" in row]
    memory, cache = rows["memory: n (d + 5) bytes"], rows["minibatches in cache: 24 n d bytes"]
    assert len(at_task) == 3
    expected = max(memory["epoch ms"], cache["epoch ms"], min(at_task))
    assert rows["floor"]["epoch ms"] == expected
    assert memory["needs 1e9"] == 600 * 789 / 1e9
    for name in (TENSORFLOW, JAX):
        ratio = rows[name]["epoch ms"] / rows["floor"]["epoch ms"]
        assert rows[name]["epoch / floor"] == pytest.approx(ratio)


def test_stages_are_run_as_dvc_does_and_all_their_time_is_divided(
    small: Repository, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run("stages", capsys, monkeypatch)

    stages = ["download", "resize", "train", "evaluate", "render"]
    assert rows.keys() == {*stages, "import wave"}
    for verb in stages:
        columns = rows[verb]
        parts = [columns[f"{kind} s"] for kind in ("imports", "reading", "computing", "writing")]
        assert min(parts) > 0, verb
        assert sum(parts) == pytest.approx(columns["wall s"])
    assert rows["train"]["peak MB"] > rows["import wave"]["peak MB"]
    assert small.changed() == {"figures.json"}  # the stages ran elsewhere


def test_repro_times_what_its_rows_say(
    small: Repository, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, spawn = [], bench.spawn

    def recorded(*words: str, **options: Any) -> tuple[float, str]:
        seconds, output = spawn(*words, **options)
        outputs.append(Reproduction(output) if "repro" in words else words[-1])
        return seconds, output

    monkeypatch.setattr(bench, "spawn", recorded)
    rows = run("repro", capsys, monkeypatch)

    cold, lr, columns, *short, bare = outputs[1:]
    assert cold.ran == ["download", "resize", "train", "evaluate", "render"]
    assert lr.ran == ["train", "evaluate", "render"]
    assert columns.ran == ["render"]
    assert [len(done.skipped) for done in short[::2]] == [5, 5, 5]
    assert (short[1::2], bare) == (["status"] * 3, "import wave")
    assert rows["import wave"]["/ import tensorflow"] == 1
    assert small.changed() == {"figures.json"}


def test_growth_compares_the_time_an_image_pixel_and_fits_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read_idx", lambda path: DATA[path.name])
    rows = medians(bench.work_growth(1))

    sizes = {(count, side): count * side**2 for count, side in ((600, 32), (2400, 32), (600, 64), (150, 32), (600, 28))}
    for name in (TENSORFLOW, JAX):
        found = {size: rows[f"{name}, {size[0]} at {size[1]}x{size[1]}"] for size in sizes}
        for size, columns in found.items():
            assert columns["ns a pixel"] == pytest.approx(1e9 * columns["epoch s"] / sizes[size])
        for larger in ((2400, 32), (600, 64)):
            growth = found[larger]["ns a pixel"] / found[600, 32]["ns a pixel"]
            assert found[larger]["growth"] == pytest.approx(growth)
        x, y = np.array(list(sizes.values())), np.array([columns["epoch s"] for columns in found.values()])
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        assert rows[f"{name}, line"]["ns a pixel"] == pytest.approx(1e9 * slope)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "expected parts from fit, floor, stages, repro, growth, got 'speed'"),
        (["--runs", "0"], "--runs: expected a whole number from 1 to 100, got '0'"),
        (["--runs", "many"], "--runs: expected a whole number from 1 to 100, got 'many'"),
        (["--json", "."], "--json: expected a file in a folder that is there, got ."),
        (["--json", "no/figures.json"], "--json: expected a file in a folder that is there, got no/figures.json"),
        ([], "data/raw: expected the data set, found nothing: run `dvc repro --quiet resize`"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])

    with pytest.raises(SystemExit) as error:
        bench.main()
    assert error.value.code == f"bench: {message}"
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_worker_s_one_line_is_the_benchmark_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "^data/resized/train.npz: expected a file, found none: run `dvc repro` to make it again$"
    with pytest.raises(bench.UserError, match=expected):
        bench.worker("fit", "NumPy oracle", "cpu")
