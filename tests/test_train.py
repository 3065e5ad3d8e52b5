"""The train stage, in process, on a data set made here."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages.core.command import UserError
from stages.train import train
from tools.proof import oracle

OUTPUTS = ("data/model.npz", "metrics/train.json", "plots/history.csv")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (200, 32, 32), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 200, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and a resized data set, and in it."""
    text = (Path(__file__).parent.parent / "params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    Path("data/resized").mkdir(parents=True)
    for split in ("train", "validation"):
        np.savez(f"data/resized/{split}.npz", images=IMAGES, labels=LABELS)
    Path("params.yaml").write_text(
        text.replace("epochs: 10", "epochs: 2").replace("batch_size: 256 # ex", "batch_size: 64 # ex")
    )
    return tmp_path


def set_params(**values: object) -> None:
    """Change values of params.yaml, ``train_lr=2`` being train.lr, as an editor would."""
    path, lines, section = Path("params.yaml"), [], ""
    for line in Path("params.yaml").read_text().splitlines():
        key = line.split(":")[0]
        section = key if not key.startswith((" ", "#")) else section
        name = f"{section}_{key.strip()}"
        lines.append(f"{key}: {values[name]}" if name in values else line)
    path.write_text("\n".join(lines) + "\n")


def run(prefix: str = "") -> dict[str, bytes]:
    outputs = [Path(prefix + path) for path in OUTPUTS]
    train(Path("data/resized"), *outputs)
    return {path: output.read_bytes() for path, output in zip(OUTPUTS, outputs, strict=True)}


def test_outputs_are_the_oracle_s(folder: Path) -> None:
    set_params(runtime_framework="tensorflow", runtime_device="cpu")
    run()

    expected = oracle.train(IMAGES, LABELS, seed=0, epochs=2, batch_size=64, lr=0.1, sigma=0.01)
    with np.load("data/model.npz", allow_pickle=False) as model:
        assert sorted(model.files) == ["W", "b"]
        assert model["W"].tobytes() == expected.W.tobytes()
        assert model["b"].tobytes() == expected.b.tobytes()
    metrics = json.loads(Path("metrics/train.json").read_text())
    assert sorted(metrics) == ["train_loss", "validation_accuracy", "validation_loss"]
    assert metrics["train_loss"] == round(expected.losses[-1], 6)
    header, *rows = Path("plots/history.csv").read_text().splitlines()
    assert header == "epoch,train_loss,validation_loss,validation_accuracy"
    assert [row.split(",")[:2] for row in rows] == [[str(i + 1), f"{expected.losses[i]:.6f}"] for i in range(2)]


def test_frameworks_write_the_same_bytes(folder: Path) -> None:
    set_params(runtime_framework="tensorflow")
    first = run("tensorflow/")
    set_params(runtime_framework="jax")

    assert run("jax/") == first


def test_same_seed_writes_the_same_bytes_and_another_seed_others(folder: Path) -> None:
    set_params(runtime_framework="jax")
    first, again = run("first/"), run("again/")
    set_params(train_seed=1)
    other = run("other/")

    assert again == first
    assert all(other[path] != first[path] for path in OUTPUTS)


@pytest.mark.parametrize(
    ("values", "when", "advice"),
    [
        ({"train_lr": 1000}, "in epoch 1: ", "lower train.lr"),
        ({"train_sigma": 1000, "train_lr": 0.1}, "before the first epoch: ", "or train.sigma"),
    ],
)
def test_divergence_stops_and_leaves_the_outputs_alone(
    folder: Path, values: dict[str, float], when: str, advice: str
) -> None:
    set_params(runtime_framework="jax")
    Path("data/model.npz").write_bytes(b"the previous model")
    set_params(**values)

    with pytest.raises(UserError) as caught:
        run()
    assert str(caught.value).startswith(when)
    assert advice in str(caught.value)
    assert Path("data/model.npz").read_bytes() == b"the previous model"
    assert not Path("metrics").exists()


def test_faulty_params_stop_before_any_work(folder: Path) -> None:
    set_params(render_columns=0)

    with pytest.raises(UserError, match=r"^params\.yaml: render\.columns: expected a whole number"):
        run()
    assert not Path("metrics").exists()


def test_missing_data_is_named(folder: Path) -> None:
    Path("data/resized/train.npz").unlink()

    with pytest.raises(UserError, match=r"^data/resized/train\.npz: expected a file, found none: run `dvc repro`"):
        run()
