"""The command that checks the promise: its rows, its verdicts, and the compiled programs it reads."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.model.frameworks import softmax_regression
from stages.runtime import devices
from tools.proof import oracle, verify
from tools.proof.verify import Row

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (600, 12, 12), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 600, dtype=np.uint8)
GOOD = {"place": "CPU", "failed": [], "first": 1.0, "steady": 0.5, "wall": 2.0, "sha256": "ab" * 32, "md5": "cd" * 16}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed parameters, 600 training images, and in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("data/resized").mkdir(parents=True)
    np.savez("data/resized/train.npz", images=IMAGES, labels=LABELS)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


@pytest.mark.parametrize(
    "row",
    [
        Row("numpy", instruction_set="SSE4.2"),
        Row("tensorflow-graph", threads="1"),
        Row("tensorflow-xla"),
        Row("tensorflow-xla", threads="1"),
        Row("tensorflow-xla", instruction_set="SSE4.2"),
        Row("jax"),
        Row("jax", threads="1"),
        Row("jax", instruction_set="SSE4.2"),
        Row("jax", devices="3"),
        Row("jax", processes="2"),
    ],
    ids=" ".join,
)
def test_a_row_gives_the_oracle_s_bits_whatever_its_threads_and_instructions(folder: Path, row: Row) -> None:
    result = verify.run(row, epochs=2)

    expected = oracle.train(IMAGES, LABELS, seed=0, epochs=2, batch_size=256, lr=0.1, sigma=0.01)
    assert result["sha256"] == verify.digest(expected.W, expected.b)
    assert result["failed"] == []
    shared = {"3": ", 3 devices"}.get(row.devices) or {"2": ", 2 devices of 2 processes"}.get(row.processes, "")
    assert result["place"] == f"CPU{shared}"


def test_each_implementation_has_rows_for_threads_instruction_sets_and_numbers_of_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "cpuinfo", lambda name: "sse4_2 avx2")
    monkeypatch.setattr(verify, "driver_gpus", lambda: None)

    assert [row[2:] for row in verify.rows() if row.implementation == "jax"] == [
        ("all", "best", "1", "1"),
        ("1", "best", "1", "1"),
        ("all", "SSE4.2", "1", "1"),
        ("all", "AVX2", "1", "1"),
        *(("all", "best", count, "1") for count in "2348"),
        ("all", "best", "1", "2"),
    ]
    assert {row.implementation for row in verify.rows()} == set(verify.IMPLEMENTATIONS)
    assert {row.device for row in verify.rows()} == {"cpu"}


def test_gpu_rows_appear_where_the_driver_sees_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "driver_gpus", lambda: 1)

    gpu_rows = [row.implementation for row in verify.rows() if row.device == "gpu"]
    assert gpu_rows == ["tensorflow-graph", "tensorflow-xla", "jax"]


def test_all_gpus_together_have_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "driver_gpus", lambda: 4)

    assert list(verify.rows())[-1] == Row("jax", device="gpu", devices="4")


def verdict(monkeypatch: pytest.MonkeyPatch, *results: dict[str, Any], arguments: tuple[str, ...] = ()) -> Any:
    """Run the command over rows with these results; return its exit code."""
    remaining = iter(results)
    monkeypatch.setattr(verify, "rows", lambda: [Row("jax")] * len(results))
    monkeypatch.setattr(verify, "run", lambda row, epochs: next(remaining))
    monkeypatch.setattr(verify, "recorded_md5", lambda: GOOD["md5"])
    monkeypatch.setattr(sys, "argv", ["verify", *arguments])
    try:
        verify.main()
    except SystemExit as error:
        return error.code
    return 0


def test_equal_rows_pass_and_name_the_recorded_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict(monkeypatch, GOOD, GOOD) == 0

    output = capsys.readouterr().out
    assert len(re.findall(r"^JAX +CPU +all +best +1\.00 +0\.50 +2\.00 +abababababababab same$", output, re.M)) == 2
    assert f"The model is the one that dvc.lock records: {GOOD['sha256']}" in output
    assert "numpy " in output


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"sha256": "00" * 32}, "0000000000000000 DIFFERENT"),
        ({"failed": ["A4: exp"]}, "same; A4: exp does not hold"),
    ],
)
def test_a_row_that_differs_or_breaks_an_assumption_fails(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    shown: str,
) -> None:
    assert "expected the same model" in verdict(monkeypatch, GOOD, GOOD | change)
    assert shown in capsys.readouterr().out


def test_a_row_that_crashes_fails_and_one_that_the_machine_cannot_do_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected the same model" in verdict(monkeypatch, GOOD, {"error": "Segmentation fault"})
    assert "failed: Segmentation fault" in capsys.readouterr().out
    assert verdict(monkeypatch, GOOD, {"cannot": "no CUDA libraries"}) == 0
    assert "not run: no CUDA libraries" in capsys.readouterr().out


def test_a_model_that_dvc_lock_does_not_record_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected the same model" in verdict(monkeypatch, GOOD | {"md5": "ef" * 16})
    assert "The model is NOT the one that dvc.lock records" in capsys.readouterr().out


def test_fewer_epochs_are_not_compared_with_dvc_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict(monkeypatch, GOOD | {"md5": "ef" * 16}, arguments=("--epochs", "1")) == 0
    assert "dvc.lock" not in capsys.readouterr().out


@pytest.mark.parametrize("epochs", ["0", "-1", "ten", "1001"])
def test_a_wrong_number_of_epochs_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epochs: str
) -> None:
    assert verdict(monkeypatch, GOOD, arguments=(f"--epochs={epochs}",)) == 2
    assert f"expected a whole number from 1 to 1000, got '{epochs}'" in capsys.readouterr().err


def test_a_row_without_data_says_what_is_missing(folder: Path) -> None:
    Path("data/resized/train.npz").unlink()

    message = "data/resized/train.npz: expected a file, found none: run `dvc repro` to make it again"
    assert verify.run(Row("numpy"), 1)["cannot"] == message


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_compiled_epoch_has_no_constant_that_could_scale_a_product(framework: str) -> None:
    lr = 0.1234567
    devices.start(framework, "cpu")
    model = softmax_regression(framework, 144, lr, batch_size=256)
    order = np.arange(600, dtype=np.int32)
    program = verify.compiled_program(model, tuple(model.to_device(array) for array in (IMAGES, LABELS, order)))

    constants = {float(value) for value in re.findall(r"= f64\[\]\S* constant\(([-+.\w]+)\)", program)}
    assert 2.0**-24 in constants  # the program was read
    assert " dot(" in program
    assert lr not in constants
    # All others are powers of two; the size of the last minibatch, of 88 examples, is counted at run time.
    assert {c for c in constants if np.isfinite(c) and c and np.frexp(abs(c))[0] != 0.5} == set()
    assert verify.folded_constants(program) == []


def test_compiled_programs_need_less_than_a_gibibyte_for_the_real_data_set() -> None:
    from stages.model import softmax_jax

    model = softmax_jax.SoftmaxRegressionScratch(1024, 10, 0.1)
    X, y = model.to_device(np.zeros((60_000, 32, 32), np.uint8)), model.to_device(np.zeros(60_000, np.uint8))
    order = model.to_device(np.arange(60_000, dtype=np.int32))
    programs = [
        softmax_jax.fit_epoch.lower(model.state, X, y, order, 0.1, 256),
        softmax_jax.validation_step.lower(model.state, X[:10_000], y[:10_000]),
    ]
    needs = [program.compile().memory_analysis() for program in programs]

    # The training set stays on the device while the validation set is scored.
    assert sum(n.argument_size_in_bytes + n.temp_size_in_bytes + n.output_size_in_bytes for n in needs) < 2**30


def test_peak_memory_is_what_the_framework_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    gpu = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 5})
    monkeypatch.setattr(jax, "devices", lambda kind: [gpu])

    assert verify.peak_memory("jax") == 5


def test_scales_of_gpu_products_are_found_in_a_program_s_text() -> None:
    call = 'custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
    scales = [json.dumps({"alpha_real": alpha, "alpha_imag": 0, "beta": 0}) for alpha in (1, 0.00390625, 0.1, -3)]

    assert verify.folded_constants("\n".join(call + scale + "}" for scale in scales)) == ["0.1", "-3"]
