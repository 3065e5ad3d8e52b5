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
import string
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import vl_convert
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import SCMError

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import publish
from stages.core.params import MAX_ROWS
from tools.common.git import git, says
from tools.common.machine import gpus, processor
from tools.results.compare import blocks, compare
from tools.results.published import Results, read_results
from tools.results.revisions import check_committed

TEMPLATE, CHARTS = Path(__file__).with_suffix(".html"), Path(__file__).with_name("charts.json")
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


def datasets(results: Results) -> dict[str, Any]:
    """Return the rows of numbers that the template's charts draw, by name."""
    examples = {row["class"]: row["examples"] for row in results.classes}
    cells = [
        {
            "actual": actual,
            "predicted": predicted,
            "count": results.counts[actual, predicted],
            "fraction": results.counts[actual, predicted] / examples.get(actual, 1),
            "outcome": "correct" if actual == predicted else "incorrect",
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
    confused = sorted((-count, *pair) for pair, count in counts.items() if pair[0] != pair[1])[:3]
    named = ", ".join(f"{actual} taken for {predicted} ({-count})" for count, actual, predicted in confused)
    return f"Most frequent: {named}." if confused else ""


def error_grid(results: Results) -> str:
    """Return the picture and the text that stands for it."""
    errors, examples = results.errors.total(), results.scores["batch"]["examples"]
    shown = min(errors, MAX_ROWS * results.params.render.columns)
    text = f"{errors} of the {examples} examples of the validation batch are misclassified. "
    text += f"The first {shown} are shown. " * (shown < errors) + most_frequent(results.errors)
    width, height = results.size
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


def source() -> str:
    """Say which commit this is, as HTML, or why Git cannot answer."""
    commit = git("log", "-1", "--format=Commit %h: %s")
    if commit.returncode:
        return html.escape(says(commit))
    text = html.escape(commit.stdout.decode(errors="replace").strip())
    return text + ", with changes that are not committed" * bool(git("status", "--porcelain", "--", ".").stdout)


def outputs() -> tuple[str, str]:
    """Return a sentence if ``make repro`` would change something, and the table of the outputs.

    Raises:
        UserError: DVC cannot answer, or an output was never made.
    """
    try:
        with Repo() as repo:
            outs = [(out, out.workspace_status().get(str(out))) for out in repo.index.outs]
            stale = html.escape(", ".join(repo.status()))
    except (DvcException, SCMError) as error:
        raise UserError(f"expected `dvc status` to work, found: {str(error).splitlines()[0]}") from None
    for out, _ in outs:
        if not (out.hash_info and out.meta.size):
            raise UserError(f"dvc.lock: expected hash and size of {out}, found none: run `make repro`")
    words = {"deleted": "no, missing", "modified": "no, another content", None: "yes"}
    header = ["path", "MD5 in dvc.lock", "bytes", "on disk now"]
    rows = [(out, out.hash_info.value, f"{out.meta.size:,}", words[state]) for out, state in outs]
    sentence = f". <strong>Not up to date: <code>make repro</code> would run or restore {stale}.</strong>"
    return sentence if stale else "", table("Outputs", header, rows, "hashes")


def page(rev: str | None) -> bytes:
    """Make the page.

    Args:
        rev: The revision to compare with, or None for no comparison.

    Raises:
        UserError: A result is missing, malformed or, with ``rev``, not committed; or the revision has none.
    """
    results = read_results()
    stale, table_of_outputs = outputs()
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
        charts=CHARTS.read_text(encoding="utf-8"),
        data=json.dumps(datasets(results), allow_nan=False).replace("<", "\\u003c"),
        environment=table("Versions and hardware", ["item", "here"], environment().items()),
        errors=error_grid(results),
        highest=f"{highest:.4f}",
        most_frequent=most_frequent(results.counts),
        outputs=table_of_outputs,
        parameters=table("Parameters", ["parameter", "value"], values),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        source=source() + stale,
    ).encode()


def main() -> None:
    """Write the page, whole or not at all."""
    parser = argparse.ArgumentParser(prog="report", description="Make one page of the results.")
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
    except KeyboardInterrupt:
        print("report: interrupted", file=sys.stderr)
        sys.exit(130)
    print(f"{output}: open it in a browser")


if __name__ == "__main__":
    main()
