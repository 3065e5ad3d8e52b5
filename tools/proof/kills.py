"""Kill stages and dvc at random moments, and see whether ``make repro`` then gives what was committed.

    python -m tools.proof.kills --kills 100 --seed 0

The series works in a clone of the last commit, in a temporary folder. Each kill starts a ``dvc repro`` that has work to
do: it runs a stage again, or only restores results and rewrites ``dvc.lock``. The signal is sent at a uniformly random
time. Afterwards:

- nothing that it started is still alive;
- every file under an output's name is whole: it has the content of a finished run;
- after what ``make repro`` does, lock, metrics, plots and data are those of an undisturbed run, with nothing beside.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from stages.core.params import load_params
from tools.common.git import says
from tools.common.parameters import set_parameter

STAGE_HITS = [
    ("stage", signal.SIGKILL),
    ("stage", signal.SIGTERM),
    ("stage", signal.SIGINT),
    ("dvc", signal.SIGKILL),
    ("dvc", signal.SIGTERM),
    ("both", signal.SIGINT),  # Ctrl-C; SIGINT to dvc alone is ignored while a stage runs
]
BOOKKEEPING_HITS = [("dvc", signal.SIGKILL)] * 12 + [("dvc", signal.SIGTERM)] * 4 + [("both", signal.SIGINT)] * 4
BOOKKEEPING = "bookkeeping"
LOCK = "dvc.lock"
SHELLS = ("bash", "dash")
END_SECONDS = 120.0
"""What is hit must have ended after so long."""


class Kill(NamedTuple):
    """One kill: the stage that ran (or ``bookkeeping``), what was hit and with what, and under which shell."""

    where: str
    target: str
    signal: signal.Signals
    shell: str

    @property
    def hit(self) -> str:
        """The signal and what got it, as the table names it."""
        return "Ctrl-C" if self.target == "both" else f"{self.signal.name} to {self.target}"


class Outcome(NamedTuple):
    """What came of a kill: its second of the run, seconds until all had ended, the repair's lines, what differs."""

    kill: Kill
    moment: float
    outlived: float
    repairs: list[str]
    errors: list[str]


class Clone:
    """A clone of a repository in which the pipeline has run, and what the runs left there."""

    def __init__(self, source: Path, root: Path, environment: Mapping[str, str]) -> None:
        question = ["git", "rev-parse", "--show-toplevel", "--show-prefix"]
        answer = subprocess.run(question, cwd=source, env=environment, capture_output=True)
        if answer.returncode:
            raise SystemExit(f"kills: expected a Git repository, but {says(answer)}")
        top, prefix = answer.stdout.decode().splitlines()
        subprocess.run(["git", "clone", "--quiet", "--no-local", top, str(root)], env=environment, check=True)
        self.root = root = root / prefix
        self.parameters = root / "params.yaml"
        # Output unbuffered, so that a stage's start is seen when it happens.
        self.environment = {**environment, "PYTHONUNBUFFERED": "1"}
        if (source / ".dvc/cache").is_dir():
            shutil.copytree(source / ".dvc/cache", root / ".dvc/cache")  # so that only the kills take time
        self.stages: list[str] = list(yaml.safe_load((root / "dvc.yaml").read_text())["stages"])
        self.run("dvc", "repro", "--quiet")
        if self.run("git", "status", "--porcelain"):
            raise SystemExit("kills: expected a commit with its own dvc.lock, found another result: run `make repro`")
        self.expected = self.files()
        set_parameter(self.parameters, "lr", load_params(self.parameters).train.lr / 2)
        self.other_parameters = self.parameters.read_text()  # bookkeeping goes to their results and back
        self.run("dvc", "repro", "--quiet")
        self.other = self.files()
        self.run("git", "restore", "params.yaml")
        self.seconds = {BOOKKEEPING: self.timed("dvc", "repro", "--quiet")}

    def run(self, *command: str) -> str:
        """Return what a command wrote to stdout; if it fails, end with what it wrote to stderr."""
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"kills: {' '.join(command)}: {done.stdout}{done.stderr}".rstrip())
        return done.stdout

    def timed(self, *command: str) -> float:
        """Return how many seconds a command takes."""
        start = time.monotonic()
        self.run(*command)
        return time.monotonic() - start

    def files(self) -> dict[str, str]:
        """Return the MD5 of the content of each file in the folders of outputs, and of ``dvc.lock``."""
        folders = [self.root / name for name in ("data", "metrics", "plots")]
        paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.root)): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            for path in [*paths, self.root / LOCK]
        }

    def recover(self) -> list[str]:
        """Do what ``make repro`` does, with the committed parameters; return the lines of the repair."""
        self.run("git", "restore", "params.yaml")
        repairs = self.run(sys.executable, "-m", "tools.setup.repair").splitlines()
        self.run("dvc", "repro", "--quiet")
        return repairs

    def strike(self, kill: Kill, fraction: float) -> Outcome | None:
        """Start a run, hit it after ``fraction`` (0 to 1) of its time, and judge; None if it had ended by then."""
        command = ["dvc", "repro"]
        if kill.where == BOOKKEEPING:
            self.parameters.write_text(self.other_parameters)
        else:
            command += ["--force", "--single-item", kill.where]
            if kill.where not in self.seconds:
                self.seconds[kill.where] = self.timed(*command, "--quiet")
        run = psutil.Popen(
            command,
            cwd=self.root,
            env={**self.environment, "SHELL": f"/bin/{kill.shell}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a process group of its own, as a terminal gives it
        )
        moment = hit(run, kill, fraction * self.seconds[kill.where])
        succeeded, struck = run.poll() == 0, time.monotonic()
        while run.poll() is None or self.living():
            if time.monotonic() - struck > END_SECONDS:
                raise SystemExit(f"kills: {kill}: still alive after {END_SECONDS:.0f} s: {self.living()}")
            time.sleep(0.005)
        outlived, errors, repairs = time.monotonic() - struck, self.partial(), self.recover()
        if succeeded:
            return None
        errors += self.differing() + self.run("git", "status", "--porcelain").splitlines()
        return Outcome(kill, moment, outlived, repairs, errors)

    def partial(self) -> list[str]:
        """Say which outputs are there with a content that neither run of the pipeline gave them."""
        files = self.files()
        return [
            f"{name} is partial"
            for name, md5 in files.items()
            if name in self.expected and name != LOCK and md5 not in (self.expected[name], self.other.get(name))
        ]

    def differing(self) -> list[str]:
        """Say which files are there, missing or changed that an undisturbed run leaves otherwise."""
        files = self.files()
        names = sorted(files.keys() | self.expected)
        return [f"{name} differs" for name in names if files.get(name) != self.expected.get(name)]

    def living(self) -> list[str]:
        """Return the command lines of all processes that work in the clone."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(self.root):
                    found.append(" ".join(process.cmdline()))
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found


def hit(run: psutil.Popen, kill: Kill, seconds: float) -> float:
    """Send the signal after so many seconds of the run, or of its stage; return how many it were."""
    target: psutil.Process = run
    while kill.target == "stage" and target is run and run.poll() is None:
        time.sleep(0.002)
        target = next(iter(run.children()), run)
    start = time.monotonic()
    while time.monotonic() - start < seconds and run.poll() is None:
        time.sleep(0.002)
    moment = time.monotonic() - start
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended
        if kill.target == "both":
            os.killpg(run.pid, kill.signal)
        else:
            target.send_signal(kill.signal)
    return moment


def plan(stages: list[str], count: int, generator: random.Random) -> Iterator[Kill]:
    """Yield ``count`` kills: in each round every stage with every signal, and 20 of the bookkeeping, shuffled."""
    kills = [(stage, *hit) for stage in stages for hit in STAGE_HITS]
    kills += [(BOOKKEEPING, *hit) for hit in BOOKKEEPING_HITS]
    rounds = (generator.sample(kills, len(kills)) for _ in itertools.count())
    for where, target, number in itertools.islice(itertools.chain.from_iterable(rounds), count):
        yield Kill(where, target, number, generator.choice(SHELLS))


def series(clone: Clone, kills: Iterable[Kill], generator: random.Random) -> Iterator[Outcome]:
    """Strike and yield what came of each kill; one that came too late is tried again, earlier."""
    for kill in kills:
        fraction, outcome = generator.random(), None
        while outcome is None:
            outcome = clone.strike(kill, fraction)
            fraction *= 0.8
        yield outcome


def table(outcomes: list[Outcome], stages: list[str]) -> str:
    """Return the counts by stage and signal as Markdown: those survived of those tried."""
    names = sorted({outcome.kill.hit for outcome in outcomes})

    def count(where: str | None, name: str | None) -> str:
        cell = [o for o in outcomes if where in (None, o.kill.where) and name in (None, o.kill.hit)]
        return f"{sum(not o.errors for o in cell)} of {len(cell)}" if cell else ""

    lines = [["killed", *names, "all"], ["---"] * (len(names) + 2)]
    lines += [[where, *(count(where, name) for name in names), count(where, None)] for where in [*stages, BOOKKEEPING]]
    lines += [["all", *(count(None, name) for name in names), count(None, None)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run the series that the command line asks for and print each kill and the table; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description="Kill stages and dvc at random moments.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kills < 1:
        sys.exit(f"kills: --kills: expected a whole number from 1, got {options.kills}")
    # A shell may have started this in the background, where SIGINT is ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    generator = random.Random(options.seed)  # noqa: S311 - draws moments, not secrets
    environment = dict(os.environ)
    raw = Path("data/raw").resolve()
    if raw.is_dir():
        environment.setdefault("FASHION_MNIST_DIR", str(raw))
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        clone, outcomes = Clone(Path.cwd(), Path(scratch) / "clone", environment), []
        for outcome in series(clone, plan(clone.stages, options.kills, generator), generator):
            outcomes.append(outcome)
            kill = outcome.kill
            print(
                f"{len(outcomes):3d}  {kill.where:11s}  {kill.hit:16s}  {kill.shell:4s}  {outcome.moment:5.2f} s"
                f"  {'; '.join(outcome.errors) or 'survived'}{''.join(f'  ({line})' for line in outcome.repairs)}",
                flush=True,
            )
    print(f"\n{table(outcomes, clone.stages)}\n")
    print(f"repairs: {sum(bool(outcome.repairs) for outcome in outcomes)}")
    print(f"the longest that a process outlived its kill: {max(outcome.outlived for outcome in outcomes):.2f} s")
    sys.exit(any(outcome.errors for outcome in outcomes))


if __name__ == "__main__":
    main()
