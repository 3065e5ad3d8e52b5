"""The command that checks the promise: its rows, its verdicts, and the compiled programs it reads."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.proof import oracle, training, verify
from tools.proof.training import Row

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (600, 12, 12), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 600, dtype=np.uint8)
GOOD = {"place": "CPU", "failed": [], "first": 1.0, "steady": 0.5, "wall": 2.0, "sha256": "ab" * 32, "md5": "cd" * 16}

PROOF = {"implementation": "JAX, compiled", "place": "sm_90", "wall": 3.0, "failed": [], "found": "13 kernels"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed parameters, 600 images in each split, and in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("data/resized").mkdir(parents=True)
    for split in ("train", "validation"):
        np.savez(f"data/resized/{split}.npz", images=IMAGES, labels=LABELS)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


@pytest.mark.slow  # a process of a framework for each
@pytest.mark.parametrize(
    "row",
    [
        Row("numpy", instruction_set="SSE4.2"),
        Row("tensorflow-xla", threads="1", instruction_set="SSE4.2"),
        Row("jax", processes="2"),
    ],
    ids=" ".join,
)
def test_a_row_gives_the_oracle_s_bits_whatever_its_threads_and_instructions(folder: Path, row: Row) -> None:
    result = verify.run(row, epochs=2)

    expected = oracle.train(IMAGES, LABELS, seed=0, epochs=2, batch_size=256, lr=0.1, sigma=0.01)
    assert result["sha256"] == training.digest(expected.W, expected.b)
    assert result["failed"] == []
    assert result["place"] == "CPU" + ", 2 devices of 2 processes" * (row.processes == "2")


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


def verdict(
    monkeypatch: pytest.MonkeyPatch,
    *results: dict[str, Any],
    arguments: tuple[str, ...] = (),
    proofs: tuple[dict[str, Any], ...] = (),
) -> Any:
    """Run the command over rows and proofs with these results; return its exit code."""
    remaining = iter(results)
    monkeypatch.setattr(verify, "rows", lambda: [Row("jax")] * len(results))
    monkeypatch.setattr(verify, "proofs", lambda: proofs)
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
        ({"failed": ["A4: exp"]}, "same; breaks A4: exp"),
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


@pytest.mark.parametrize(
    ("result", "shown", "code"),
    [
        (PROOF, r"JAX, compiled +sm_90 +- +- +- +- +3\.00  holds; 13 kernels", 0),
        (PROOF | {"failed": ["A3: constant 0.1"]}, "does not hold; breaks A3: constant 0.1; 13 kernels", "expected"),
        ({"error": "Segmentation fault"}, r"proof without GPU +- .* failed: Segmentation fault", "expected"),
        ({"cannot": "expected llvmlite, found none"}, "not run: expected llvmlite, found none", 0),
    ],
)
def test_what_is_proved_without_a_gpu_has_a_row(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    result: Any,
    shown: str,
    code: Any,
) -> None:
    exit_code = verdict(monkeypatch, GOOD, proofs=(result,))

    assert exit_code == code or exit_code.startswith(f"verify: {code}")
    assert re.search(shown, capsys.readouterr().out)


def test_packages_of_the_proofs_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PROOF_PACKAGES", ("pytest", "no-such-package"))

    message = "expected no-such-package, found none: make verify EXTRAS=proof installs them"
    assert list(verify.proofs()) == [{"cannot": message}]


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
