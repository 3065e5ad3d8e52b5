"""The benchmark measures what it says: every baseline learns, counts and ratios are correct, each part runs small."""

import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Repository, small_data_set

from stages.core.command import UserError
from stages.core.params import Train
from tools.proof import oracle
from tools.proof.bench import __main__ as command_line
from tools.proof.bench import figures, fits, floor, processes, repro, stages
from tools.proof.bench.epochs import JAX, RESIZED, TENSORFLOW, Task
from tools.proof.bench.fits import ORACLE

ROOT = Path(__file__).resolve().parents[2]
DATA = small_data_set()
TASK = Task(
    DATA["train-images-idx3-ubyte"],
    DATA["train-labels-idx1-ubyte"],
    Train(seed=0, epochs=2, batch_size=32, lr=0.1, sigma=0.01),
    "cpu",
)


@pytest.mark.slow  # trains in five ways
@pytest.mark.parametrize("name", fits.BASELINES)
def test_every_baseline_learns_and_this_project_s_rows_have_the_oracle_s_bits(name: str) -> None:
    seconds, W, b = fits.BASELINES[name](TASK)
    expected = oracle.train(TASK.images, TASK.labels, **asdict(TASK.hyper))
    unseen, labels = DATA["t10k-images-idx3-ubyte"], DATA["t10k-labels-idx1-ubyte"]
    predicted = (unseen.reshape(len(labels), -1) / 256 @ np.asarray(W) + np.asarray(b)).argmax(1)

    assert (len(seconds), min(seconds) > 0) == (2, True)
    assert (predicted == labels).mean() > 0.95
    same_bits = (np.asarray(W).tobytes(), np.asarray(b).tobytes()) == (expected.W.tobytes(), expected.b.tobytes())
    assert same_bits == (name in (TENSORFLOW, JAX, ORACLE))


def test_rows_take_turns_and_are_divided_run_by_run_without_a_gpu_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {TENSORFLOW: [6.0, 4.0], ORACLE: [12.0, 12.0], JAX: [3.0, 2.0]}
    seconds |= {fits.EAGER: [60.0, 60.0], fits.KERAS: [6.0, 20.0]}
    turns = []

    def spawn_work(part: str, name: str, device: str) -> tuple[float, dict[str, float]]:
        turns.append((name, device))
        if device == "gpu" or not seconds[name]:
            raise UserError("out of memory")
        return 9.0, {fits.FIT: seconds[name].pop(0)}

    monkeypatch.setattr(processes, "spawn_work", spawn_work)
    monkeypatch.setattr(fits, "BASELINES", seconds)
    monkeypatch.setattr(fits, "driver_gpus", lambda: 1)
    measured = fits.measure(2)

    on_gpu = [name for name in seconds if name != ORACLE]
    assert turns == [*((name, "cpu") for name in seconds), *((name, "gpu") for name in on_gpu), *turns[:5]]
    assert [columns[fits.RATIO] for columns in measured.values()] == [[1, 1], [2, 3], [0.5, 0.5], [10, 15], [1, 5]]
    promised = [(12.5, False), (3, False), (0.5, False)]
    assert [(target.measured, target.met) for target in fits.targets(measured)] == promised
    assert capsys.readouterr().out.splitlines() == [f"{name}, GPU: not run: out of memory" for name in on_gpu]
    monkeypatch.setattr(fits, "driver_gpus", lambda: None)
    with pytest.raises(UserError, match="out of memory"):  # a row on the CPU that fails ends the benchmark
        fits.measure(1)


def test_a_row_is_trained_in_a_process_whose_one_line_is_the_benchmark_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    message = "^data/resized/train.npz: expected a file, found none: run `dvc repro` to make it again$"
    with pytest.raises(UserError, match=message):
        processes.spawn_work("fit", ORACLE, "cpu")

    RESIZED.mkdir(parents=True)
    np.savez(RESIZED / "train.npz", images=TASK.images, labels=TASK.labels)
    wall, found = processes.spawn_work("fit", ORACLE, "cpu", PYTHONOPTIMIZE="2")  # which leaves out docstrings
    assert (found[fits.COMPILATION], 20 < found[fits.PEAK] < 2000) == (0, True)
    assert 0 < found[fits.EPOCH] <= found[fits.FIT] < wall


def test_bytes_and_operations_of_an_epoch_are_those_worked_out_by_hand() -> None:
    assert floor.needs(60_000, 1024, 10) == (61_740_000, 1_474_560_000, 2_457_600_000)


def test_a_copy_counts_every_byte_twice_and_the_warm_up_not(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(np, "copyto", lambda target, source: copied.append(len(source)))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(floor, "timed", lambda copy, times: [copy(), 0.5][1:])

    assert floor.copy_rate(1000, 3) == 2 * 1000 * 3 / 0.5
    assert copied == [500] * 12


@pytest.mark.slow  # imports both frameworks
def test_every_library_multiplies_in_float64_what_an_epoch_does() -> None:
    pytest.importorskip("stages.model.softmax_jax")  # switches JAX to float64, as the frameworks' epochs do before
    found: dict[str, Any] = {library: both() for library, both in floor.products(2, 5, 7, 3).items()}
    rng = np.random.default_rng(0)
    X, Ws, Ds = rng.standard_normal((5, 7)), rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 5))
    for library, transposed in {"NumPy": (True, True), "TensorFlow": (True, False), "JAX": (False, False)}.items():
        for product, expected, turned in zip(found.pop(library), (Ws[1] @ X.T, Ds[1] @ X), transposed, strict=True):
            assert product.dtype == np.float64
            np.testing.assert_allclose(product.T if turned else product, expected, rtol=1e-13)
    assert found == {}


@pytest.mark.parametrize(("memory", "cache", "multiply"), [(4.0, 2.0, 1.0), (1.0, 4.0, 2.0), (2.0, 1.0, 4.0)])
def test_floor_is_the_slowest_of_memory_cache_and_the_best_library_s_products(
    monkeypatch: pytest.MonkeyPatch, memory: float, cache: float, multiply: float
) -> None:
    rates = {floor.MEMORY_BYTES: 600 * 789 / memory, 8 * 32 * 784: 24 * 600 * 784 / cache}
    seconds = multiply * floor.STEPS / (600 / 32)  # of the measured steps, of those in an epoch
    monkeypatch.setattr(floor, "resized_task", lambda device: TASK)
    monkeypatch.setattr(floor, "copy_rate", lambda size, repeats: rates[size])
    monkeypatch.setattr(floor, "products", lambda *sizes: {"TensorFlow": 2 * seconds, "JAX": seconds})
    monkeypatch.setattr(floor, "compiled", lambda task: {TENSORFLOW: 16.0, JAX: 10.0})
    monkeypatch.setattr(floor, "timed", lambda value, times: [99.0] + [value] * (times - 1))
    measured = floor.work(2)

    assert measured["floor"]["epoch ms"] == [4000, 4000]
    assert [(target.measured, target.met) for target in floor.targets(measured)] == [(4, False), (2.5, True)]


@pytest.mark.slow  # stages and an import in processes of their own
def test_the_time_of_a_stage_is_divided_and_it_runs_elsewhere(
    reproduced: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text().partition("  train:")[0])  # the quick stages
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data").symlink_to(reproduced.root / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "ROOT", reproduced.root)
    monkeypatch.setattr(stages, "BARE", "import wave")
    rows = stages.measure(1)

    assert rows.keys() == {"download", "resize", "import wave"}
    for verb in ("download", "resize"):
        wall, *spent, peak = (value for (value,) in rows[verb].values())
        assert min(spent) > 0
        assert sum(spent) == pytest.approx(wall)
        assert peak > rows["import wave"][stages.PEAK][0] > 0
    assert reproduced.changed() == set()


def test_every_function_that_is_timed_is_one_of_the_stages() -> None:
    text = "".join(path.read_text() for path in (ROOT / "stages").rglob("*.py"))
    assert [name for name in stages.TIMED if f"def {name}(" not in text] == []


def test_repro_changes_what_its_rows_say(reproduced: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, commands = processes.spawn, []

    def recorded(*words: str, cwd: Path | None = None, **environment: str) -> tuple[float, str]:
        if words[0] == "git":
            return spawn(*words)
        if cwd:
            values = Repository(cwd, os.environ).git("diff", "--unified=0", "params.yaml").split("\n+  ")[1:]
            commands.append((words[-1], *(value.partition(" #")[0].rstrip() for value in values)))
        return (9.0 if words[-1] == "repro" else 4.0), ""

    monkeypatch.chdir(reproduced.root)
    monkeypatch.setattr(processes, "spawn", recorded)
    rows = repro.measure(1)

    changes = "lr: 0.05", "columns: 7"
    short = [("repro", *changes), ("status", *changes)] * 3
    assert commands == [("repro",), ("repro", changes[0]), ("repro", *changes), *short]
    assert (rows[repro.LR][repro.PER_IMPORT], rows[repro.STATUS][repro.PER_IMPORT]) == ([2.25], [1, 1, 1])
    rows[repro.STATUS]["s"] = [8.75, 7.0, 8.9]  # the minima are compared: 9 less 7
    assert [(target.measured, target.met) for target in repro.targets(rows)] == [(2.25, True), (2.25, True), (2, False)]


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    command_line.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "expected parts from fit, floor, stages, repro, got 'speed'"),
        (["--runs", "0"], "--runs: expected a whole number from 1 to 100, got '0'"),
        (["--runs", "many"], "--runs: expected a whole number from 1 to 100, got 'many'"),
        ([], "data/raw: expected the data set, found nothing: run `dvc repro --quiet resize`"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(SystemExit) as error:
        main(monkeypatch, *arguments)
    assert error.value.code == f"bench: {message}"


def test_the_parts_asked_for_are_printed_with_their_spread_and_then_all_targets(
    reproduced: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reproduced.root)
    part = {"a": {"x s": [1.0, 3.0, 2.0], "y": [123.4]}, "longer": {"y": [0.00123]}}
    promises = [figures.Target("a", 2.0, 1.0), figures.Target("bb", 2.0, 1.5, at_least=True)]
    module = SimpleNamespace(measure=lambda runs: part, targets=lambda measured: promises)
    monkeypatch.setattr(command_line, "PARTS", {"fit": None, "part": module})
    main(monkeypatch, "--runs", "2", "part")

    assert capsys.readouterr().out.splitlines()[-8:] == [
        "",
        "part           x s        y",
        "a       2 (1 to 3)      123",
        "longer              0.00123",
        "",
        "target  measured   limit  verdict",
        "a              2    <= 1   missed",
        "bb             2  >= 1.5      met",
    ]
