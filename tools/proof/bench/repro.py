"""``dvc repro`` in a fresh clone of the last commit, with the raw files at hand and no cache."""

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages.core.params import load_params
from tools.common.parameters import set_parameter
from tools.proof.bench import processes
from tools.proof.bench.epochs import RAW
from tools.proof.bench.figures import Figures, Target, record
from tools.proof.bench.stages import BARE

COLD, LR, COLUMNS, NOTHING, STATUS = "from nothing", "train.lr changed", "render.columns changed", "no change", "status"
PER_IMPORT = f"/ {BARE}"


def measure(runs: int) -> Figures:
    """Time the commands, in a clone for each run, and beside them a bare import of TensorFlow."""
    figures = Figures()
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            time_commands(Path(scratch), figures)
    return figures


def time_commands(scratch: Path, figures: Figures) -> None:
    """Make a clone in an empty folder and record the seconds of each command."""
    clone = scratch / "clone"
    processes.spawn("git", "clone", "--quiet", "--no-local", ".", str(clone))
    # No cache and no settings but the project's; stages are run by the python on PATH.
    folders = dict.fromkeys(("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR"), str(scratch))
    environment = folders | {"FASHION_MNIST_DIR": str(RAW.resolve()), "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    bare = processes.spawn(sys.executable, "-c", BARE)[0]
    record(figures, BARE, {"s": bare, PER_IMPORT: 1})

    def dvc(row: str, command: str) -> None:
        seconds = processes.spawn(sys.executable, "-m", "dvc", command, cwd=clone, **environment)[0]
        record(figures, row, {"s": seconds, PER_IMPORT: seconds / bare})

    for folder in ("metrics", "plots"):
        shutil.rmtree(clone / folder)  # Git brings them, and DVC would run no stage that only makes these
    committed = load_params(clone / "params.yaml")
    dvc(COLD, "repro")
    set_parameter(clone / "params.yaml", "lr", committed.train.lr / 2)
    dvc(LR, "repro")
    columns = committed.render.columns
    set_parameter(clone / "params.yaml", "columns", columns - 1 if columns > 1 else 2)
    dvc(COLUMNS, "repro")
    for _ in range(3):  # short: a few more, for their minimum
        dvc(NOTHING, "repro")
        dvc(STATUS, "status")


def targets(figures: Figures) -> Iterator[Target]:
    """Yield the promises about commands."""
    for row, limit in ((COLD, 3.6), (LR, 2.8)):
        yield Target(f"dvc repro, {row} / {BARE}", statistics.median(figures[row][PER_IMPORT]), limit)
    extra = min(figures[NOTHING]["s"]) - min(figures[STATUS]["s"])
    yield Target(f"dvc repro, {NOTHING}, less dvc status (minima), s", extra, 0.3)
