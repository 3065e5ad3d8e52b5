"""Make one page of the results, of what they come from and of what changed.

    make report             # report.html: open it in a browser, offline too
    make report REV=main    # with what changed since a revision
    python -m tools.results.report [REV] [--output PAGE]

The page holds all that it shows and asks for nothing: the library that draws its charts is in it. Git ignores it and
no stage reads it, so versions and hardware can stand there and be in no output.
"""

import argparse
import base64
import hashlib
import html
import importlib.metadata
import json
import platform
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import vl_convert
from dvc.exceptions import DvcException
from dvc.repo import Repo
from voluptuous import All, Invalid, Range, Schema

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import DIGITS, publish, read_csv
from stages.core.params import MAX_ROWS, Params, load_params
from stages.model.metrics import wilson_interval
from tools.common.git import git
from tools.common.machine import gpus, processor
from tools.results.compare import blocks, check_committed, compare

TEMPLATE = Path(__file__).with_suffix(".html")
EVALUATE, TRAIN = Path("metrics/evaluate.json"), Path("metrics/train.json")
HISTORY, CONFUSION = Path("plots/history.csv"), Path("plots/predictions.csv")
CLASS_ACCURACY, ERRORS = Path("plots/class_accuracy.csv"), Path("plots/errors.png")
COUNT, LOSS, RATIO = All(int, Range(0)), All(float, Range(0)), All(float, Range(0, 1))
RATIOS = {"accuracy": RATIO, "accuracy_high": RATIO, "accuracy_low": RATIO}
SCORE = {**RATIOS, "correct": COUNT, "examples": COUNT, "loss": LOSS}
SCHEMAS = {
    EVALUATE: Schema({"batch": SCORE, "validation": SCORE}, required=True),
    TRAIN: Schema({"train_loss": LOSS, "validation_loss": LOSS, "validation_accuracy": RATIO}, required=True),
}
PNG = re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR(.{4})(.{4}).*IEND\xaeB`\x82", re.DOTALL)
"""A picture from its first byte to its last, with width and height: PNG, third edition, sections 5.2 and 11.2."""
# A chart's caption is its description too. Vega's interpreter (ast) needs no permission to run text as code.
DRAW = """
const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
const { common, charts } = parsed("charts");
for (const [id, chart] of Object.entries(charts)) {
  const place = document.getElementById(id);
  const description = place.parentElement.querySelector("figcaption").textContent;
  vegaEmbed(place, { ...common, ...chart, description, datasets: parsed("data") }, {
    mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  });
}
"""


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


def read_results() -> Results:
    """Read what the stages published.

    Raises:
        UserError: A file is missing or malformed, or contradicts the others or params.yaml.
    """
    params = load_params()
    scores, last = read_metrics(EVALUATE), read_metrics(TRAIN)
    history = read_csv(HISTORY, ["epoch", "train_loss", "validation_loss", "validation_accuracy"])
    examples = [*read_csv(CONFUSION, ["actual", "predicted"]).itertuples(index=False, name=None)]
    classes = read_csv(CLASS_ACCURACY, ["class", "examples", "correct", "accuracy"])
    batch = examples[params.evaluate.batch_size * params.evaluate.batch_index :][: params.evaluate.batch_size]
    errors = Counter(pair for pair in batch if pair[0] != pair[1])
    results = Results(params, scores, history.to_dict("records"), Counter(examples), errors, read(ERRORS))

    numbers = history.select_dtypes("number")
    agree(HISTORY, numbers.shape == history.shape and np.isfinite(numbers).all(axis=None))
    agree(HISTORY, [*history["epoch"]] == [*range(1, params.train.epochs + 1)])
    agree(HISTORY, results.history[-1].items() >= last.items())
    agree(CONFUSION, {name for pair in results.counts for name in pair} <= {*CLASS_NAMES})
    for name, part in (("batch", batch), ("validation", examples)):
        correct = sum(actual == predicted for actual, predicted in part)
        agree(CONFUSION, (len(part), correct) == (scores[name]["examples"], scores[name]["correct"]))
    counted = [
        (row["class"], row["examples"], row["correct"], round(row["accuracy"], DIGITS)) for row in results.classes
    ]
    agree(CLASS_ACCURACY, [*classes.itertuples(index=False, name=None)] == counted)
    agree(ERRORS, PNG.fullmatch(results.picture) is not None)
    return results


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


def agree(path: Path, holds: bool) -> None:
    """Raise ``UserError`` for a file that does not hold what the others say it does."""
    if not holds:
        raise UserError(f"{path}: expected what params.yaml and metrics/ say, found otherwise: run `make repro`")


def datasets(results: Results) -> dict[str, Any]:
    """Return the rows of numbers that the template's charts draw, by name."""
    examples = {row["class"]: row["examples"] for row in results.classes}
    cells = [
        {
            "actual": actual,
            "predicted": predicted,
            "count": results.counts[actual, predicted],
            "share": results.counts[actual, predicted] / examples.get(actual, 1),
            "outcome": "right" if actual == predicted else "wrong",
        }
        for actual in CLASS_NAMES
        for predicted in CLASS_NAMES
    ]
    return {"history": results.history, "cells": cells, "classes": results.classes}


def table(label: str, header: Iterable[str], rows: Iterable[Iterable[object]], kind: str = "") -> str:
    """Return a table, each row of which begins with its heading, in a box of its own that scrolls if it must."""

    def cell(value: object) -> str:
        return html.escape(f"{value:.4f}" if isinstance(value, float) else str(value))

    head = "".join(f'<th scope="col">{cell(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{cell(first)}</th>{"".join(f"<td>{cell(value)}</td>" for value in others)}</tr>\n'
        for first, *others in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(label)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def chart_tables(results: Results) -> dict[str, str]:
    """Return the tables of what the charts show, by their names in the template."""
    epochs = [[*row.values()] for row in results.history]
    matrix = [[actual, *(results.counts[actual, predicted] for predicted in CLASS_NAMES)] for actual in CLASS_NAMES]
    classes = [row.values() for row in results.classes]
    return {
        "loss": table("Loss", ["epoch", "training", "validation"], [row[:3] for row in epochs], "figures"),
        "accuracy": table("Validation accuracy", ["epoch", "accuracy"], [row[::3] for row in epochs], "figures"),
        "confusion": table("Confusion matrix", ["actual", *CLASS_NAMES], matrix, "figures"),
        "classes": table("Accuracy of each class", results.classes[0], classes, "figures"),
    }


def most_frequent(counts: Counter[tuple[str, str]]) -> str:
    """Name the three most frequent confusions, in a sentence, or say nothing if there is none."""
    wrong = sorted((-count, *pair) for pair, count in counts.items() if pair[0] != pair[1])[:3]
    named = ", ".join(f"{actual} taken for {predicted} ({-count})" for count, actual, predicted in wrong)
    return f"Most frequent: {named}." if wrong else ""


def error_grid(results: Results) -> str:
    """Return the picture and the text that stands for it."""
    errors, examples = results.errors.total(), results.scores["batch"]["examples"]
    shown = min(errors, MAX_ROWS * results.params.render.columns)
    text = f"{errors} of the {examples} examples of the validation batch are misclassified. "
    text += f"The first {shown} are shown. " * (shown < errors) + most_frequent(results.errors)
    width, height = (int.from_bytes(side) for side in PNG.findall(results.picture)[0])
    size = f'width="{width}" height="{height}" style="min-width: {width // 2}px; max-width: {width}px"'
    data = base64.b64encode(results.picture).decode()
    return (
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="Error grid">'
        f'<img {size} alt="{text}" src="data:image/png;base64,{data}"></div><figcaption>{text}</figcaption></figure>'
    )


def comparison(rev: str) -> str:
    """Return what changed between a revision and the last commit, as ``tools.results.compare`` says it."""
    check_committed()
    parts = [
        f"<p>{html.escape(block)}</p>"
        if isinstance(block, str)
        else table(f"Comparison by {block[0][0] or 'accuracy'}", block[0], block[1:], "figures")
        for block in blocks(compare(rev))
    ]
    return f'<section aria-labelledby="h-changes"><h2 id="h-changes">What changed</h2>{"".join(parts)}</section>'


def environment() -> dict[str, str]:
    """Describe this machine and the versions in use, without starting a framework."""
    versions = {"NumPy": "numpy", "TensorFlow": "tensorflow", "JAX": "jax", "DVC": "dvc"}
    return {
        "processor": processor(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "GPU": ", ".join(gpus("name")) or "none",
        "system": platform.platform(),
        "Python": platform.python_version(),
    } | {name: importlib.metadata.version(package) for name, package in versions.items()}


def provenance() -> tuple[str, str]:
    """Say which commit this is and whether ``make repro`` would change it, and return the table of the outputs.

    Raises:
        UserError: DVC cannot tell, or an output was never made.
    """
    commit = git("log", "-1", "--format=Commit %h: %s")
    text = html.escape(commit.stdout.decode(errors="replace").strip()) if not commit.returncode else "not committed"
    if not commit.returncode and git("status", "--porcelain").stdout:
        text += ", with changes that are not committed"
    try:
        with Repo() as repo:
            outs = [(out, out.workspace_status().get(str(out))) for out in repo.index.outs]
            stale = ", ".join(repo.status())
    except DvcException as error:
        raise UserError(f"expected `dvc status` to work, found: {str(error).splitlines()[0]}") from None
    for out, _ in outs:
        if not (out.hash_info and out.meta.size):
            raise UserError(f"dvc.lock: expected hash and size of {out}, found none: run `make repro`")
    if stale:
        text += f". <strong>Not up to date: <code>make repro</code> would run or restore {html.escape(stale)}.</strong>"
    words = {"deleted": "no, missing", "modified": "no, another content", None: "yes"}
    rows = [(out, out.hash_info.value, f"{out.meta.size:,}", words[state]) for out, state in outs]
    return text, table("Outputs", ["path", "MD5 in dvc.lock", "bytes", "on disk now"], rows, "hashes")


def page(rev: str | None) -> bytes:
    """Make the page.

    Args:
        rev: The revision to compare with, or None for no comparison.

    Raises:
        UserError: A result is missing, malformed or, with ``rev``, not committed; or the revision has none.
    """
    results = read_results()
    source, outputs = provenance()
    script = vl_convert.javascript_bundle(DRAW)
    values = [
        (f"{name}.{key}", str(value))
        for name, section in asdict(results.params).items()
        for key, value in section.items()
    ]
    numbers = {
        f"{name}_{key}": f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        for name, section in {**results.scores, "last": results.history[-1]}.items()
        for key, value in section.items()
    }
    highest = max(epoch["validation_accuracy"] for epoch in results.history)
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        chart_tables(results) | numbers,
        comparison=comparison(rev) if rev is not None else "",
        data=json.dumps(datasets(results), allow_nan=False).replace("<", "\\u003c"),
        environment=table("Versions and hardware", ["item", "here"], environment().items()),
        errors=error_grid(results),
        highest=f"{highest:.4f}",
        most_frequent=most_frequent(results.counts),
        outputs=outputs,
        parameters=table("Parameters", ["parameter", "value"], values),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        source=source,
    ).encode()


def main() -> None:
    """Write the page, whole or not at all."""
    parser = argparse.ArgumentParser(prog="report", description=__doc__.splitlines()[0])
    parser.add_argument("rev", nargs="?", metavar="REV", help="the revision to compare with")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="PAGE", help="default: report.html")
    arguments = parser.parse_args()
    output: Path = arguments.output
    try:
        if output.suffix != ".html" or not output.parent.is_dir():
            raise UserError(f"{output}: expected a name that ends in .html in a folder that exists")
        publish({output: page(arguments.rev)})
    except UserError as error:
        sys.exit(f"report: {error}")
    except OSError as error:
        sys.exit(f"report: {error.filename}: {error.strerror}")
    print(f"{output}: open it in a browser")


if __name__ == "__main__":
    main()
