"""Where the time of each stage goes, without DVC."""

import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from stages.core import command
from tools.proof.bench import processes
from tools.proof.bench.epochs import RAW
from tools.proof.bench.figures import Figures, Target, record

WALL, IMPORTS, READING, WRITING, COMPUTING = "wall s", "imports s", "reading s", "writing s", "computing s"
PEAK = "peak MB"
TIMED = {
    "start": IMPORTS,  # of a framework
    **dict.fromkeys(("read_source", "read_idx", "read_npz", "read_csv"), READING),
    **dict.fromkeys(("publish", "npz_bytes", "json_bytes", "csv_bytes"), WRITING),
}
"""Functions of the stages, none of which calls another, and the column of their time."""
BARE = "import tensorflow"


def work(verb: str, paths: list[str], started: float) -> dict[str, float]:
    """Run a stage in this process, started at that Unix time, as its command would; return seconds and memory."""
    seconds, run = {IMPORTS: 0.0, READING: 0.0, WRITING: 0.0}, command.run

    @contextmanager
    def timed(column: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[column] += time.perf_counter() - start

    def run_timed(stage: Callable[..., None]) -> None:
        seconds[IMPORTS] = time.time() - started
        for name in [name for name in sys.modules if name == "__main__" or name.startswith("stages.")]:
            names = vars(sys.modules[name])
            names.update({key: timed(TIMED[key])(names[key]) for key in TIMED.keys() & names})
        run(stage)

    command.run, sys.argv[1:] = run_timed, paths
    runpy.run_module(f"stages.{verb}", run_name="__main__", alter_sys=True)
    return {**seconds, PEAK: processes.peak_megabytes(Path("/proc/self/status").read_text())}


def measure(runs: int) -> Figures:
    """Divide the time of each stage in dvc.yaml, and time a bare import of TensorFlow beside them.

    Imports: from the start of the process to ``command.run``, and the start of a framework, which imports it. Reading:
    files with the checks of their content. Writing: encoders and ``publish``. Computing: the rest, with drawing and the
    end of the process.
    """
    figures = Figures()
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    raw = str(RAW.resolve())
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        (Path(scratch) / "params.yaml").write_bytes(command.PARAMS.read_bytes())
        for _ in range(runs):
            for verb, stage in stages.items():
                paths = stage["cmd"].split(f"stages.{verb} ")[1].split()
                arguments = verb, paths, time.time()
                wall, spent = processes.spawn_work("stages", *arguments, cwd=Path(scratch), FASHION_MNIST_DIR=raw)
                peak = spent.pop(PEAK)
                record(figures, verb, {WALL: wall, **spent, COMPUTING: wall - sum(spent.values()), PEAK: peak})
            wall, status = processes.spawn(sys.executable, "-c", f"{BARE}\nprint(open('/proc/self/status').read())")
            record(figures, BARE, {WALL: wall, PEAK: processes.peak_megabytes(status)})
    return figures


def targets(figures: Figures) -> Iterator[Target]:
    """Yield the promise about memory."""
    above = statistics.median(figures["train"][PEAK]) - statistics.median(figures[BARE][PEAK])
    yield Target(f"peak of train above {BARE}, MB", above, 1000.0)
