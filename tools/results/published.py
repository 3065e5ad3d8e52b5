"""What the stages published in Git: read for the report, and checked where the page would contradict itself."""

import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from voluptuous import All, Invalid, Range, Schema

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import read_csv
from stages.core.params import Params, load_params
from stages.model.metrics import wilson_interval

EVALUATE, TRAIN = Path("metrics/evaluate.json"), Path("metrics/train.json")
HISTORY, PREDICTIONS, ERRORS = Path("plots/history.csv"), Path("plots/predictions.csv"), Path("plots/errors.png")
COUNT, LOSS, RATIO = All(int, Range(0)), All(float, Range(0)), All(float, Range(0, 1))
RATIOS = {"accuracy": RATIO, "accuracy_high": RATIO, "accuracy_low": RATIO}
SCORE = {**RATIOS, "correct": COUNT, "examples": COUNT, "loss": LOSS}
SCHEMAS = {
    EVALUATE: Schema({"batch": SCORE, "validation": SCORE}, required=True),
    TRAIN: Schema({"train_loss": LOSS, "validation_loss": LOSS, "validation_accuracy": RATIO}, required=True),
}


@dataclass(frozen=True)
class Results:
    """What the stages published in Git; the files agree with each other and with params.yaml."""

    params: Params
    scores: Mapping[str, Mapping[str, Any]]
    """Of ``batch`` and ``validation``, as in metrics/evaluate.json."""
    history: Sequence[Mapping[str, float]]
    """An epoch each, as in plots/history.csv; the last is that of metrics/train.json."""
    counts: Counter[tuple[str, str]]
    """Examples of the validation set by actual and predicted class."""
    errors: Counter[tuple[str, str]]
    """Misclassified examples of the validation batch, likewise."""
    picture: bytes
    """plots/errors.png."""

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The classes that have examples, in label order, each with its accuracy and the 95 % interval of that."""
        rows = []
        for name in CLASS_NAMES:
            correct, examples = self.counts[name, name], sum(self.counts[name, other] for other in CLASS_NAMES)
            if examples:
                low, high = wilson_interval(correct, examples)
                row = {"class": name, "correct": correct, "examples": examples}
                rows.append(row | {"accuracy": correct / examples, "low": low, "high": high})
        return rows

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        with Image.open(io.BytesIO(self.picture)) as image:
            return image.size


def read_results() -> Results:
    """Read what the stages published.

    Raises:
        UserError: A file is missing or malformed, or contradicts the metrics or params.yaml.
    """
    params = load_params()
    scores, last = read_metrics(EVALUATE), read_metrics(TRAIN)
    history = read_csv(HISTORY, ["epoch", "train_loss", "validation_loss", "validation_accuracy"]).to_dict("records")
    examples = [*read_csv(PREDICTIONS, ["actual", "predicted"]).itertuples(index=False, name=None)]
    batch = examples[params.evaluate.batch_size * params.evaluate.batch_index :][: params.evaluate.batch_size]

    finite = all(isinstance(value, int | float) and math.isfinite(value) for row in history for value in row.values())
    epochs = [row["epoch"] for row in history] == [*range(1, params.train.epochs + 1)]
    agree(HISTORY, finite and epochs and history[-1].items() >= last.items())
    counts = Counter(examples)
    known = {name for pair in counts for name in pair} <= {*CLASS_NAMES}
    parts = {"batch": batch, "validation": examples}
    found = {name: (len(part), sum(actual == predicted for actual, predicted in part)) for name, part in parts.items()}
    agree(
        PREDICTIONS, known and all(found[name] == (scores[name]["examples"], scores[name]["correct"]) for name in parts)
    )
    picture = read(ERRORS)
    agree(ERRORS, is_png(picture))
    errors = Counter(pair for pair in batch if pair[0] != pair[1])
    return Results(params, scores, history, counts, errors, picture)


def read(path: Path) -> bytes:
    """Read a file that a stage wrote."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: expected a file, found none: run `make repro` to make it") from None


def read_metrics(path: Path) -> Any:
    """Read metrics and check them against their schema."""
    try:
        return SCHEMAS[path](json.loads(read(path)))
    except (ValueError, Invalid) as error:
        raise UserError(f"{path}: expected metrics, found otherwise: {error}: run `make repro`") from None


def is_png(content: bytes) -> bool:
    """Return whether the content is a PNG, whole and with the checksums of its parts."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError):
        return False
    return True


def agree(path: Path, holds: bool) -> None:
    """Raise ``UserError`` for a file that does not hold what the others say it does."""
    if not holds:
        raise UserError(f"{path}: expected what params.yaml and metrics/ say, found otherwise: run `make repro`")
