"""A stage as a process: what a user sees on stderr and what DVC sees as the exit code."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
PROBE = """
import signal
from pathlib import Path
from stages.core.command import UserError, run

def stage(raw, resized):
    {}

run(stage)
"""


@pytest.fixture
def start(tmp_path, environment):
    """Start a stage named ``probe`` whose body is the given statement."""

    def start(body, *paths):
        (tmp_path / "probe.py").write_text(PROBE.format(body))
        return subprocess.Popen(
            [sys.executable, "-m", "probe", *paths],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
            **PIPES,
        )

    return start


@pytest.fixture
def outcome(start):
    """Run a stage to its end and return exit code, stdout and stderr."""

    def outcome(body, *paths):
        process = start(body, *paths)
        stdout, stderr = process.communicate()
        return process.returncode, stdout, stderr

    return outcome


def test_a_stage_gets_its_paths_in_order_and_succeeds_silently(outcome):
    assert outcome("print(repr((raw, resized)))", "a", "b c/d") == (0, "(PosixPath('a'), PosixPath('b c/d'))\n", "")


def test_at_the_end_of_a_stage_no_object_is_left_to_look_through(outcome):
    body = "import atexit, gc; atexit.register(lambda: print(len(gc.get_objects()) < gc.get_freeze_count() / 100))"
    assert outcome(body, "a", "b") == (0, "True\n", "")


@pytest.mark.parametrize("paths", [("a",), ("a", "b", "c")])
def test_a_wrong_number_of_paths_is_refused_with_the_usage_and_the_stage_is_not_run(outcome, paths):
    usage = f"probe: expected 2 paths, got {len(paths)}: python -m stages.probe RAW RESIZED\n"
    assert outcome("print('ran')", *paths) == (1, "", usage)


def test_an_error_that_the_user_can_fix_is_one_line_and_exit_code_1(outcome):
    body = "raise UserError('expected ≤ 1') from KeyError('cause')"
    assert outcome(body, "a", "b") == (1, "", "probe: expected ≤ 1\n")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raw.read_bytes()", "probe: a: No such file or directory"),
        ("raise OSError(28, 'No space left on device')", "probe: No space left on device"),
        ("raise OSError('the disk is on fire')", "probe: the disk is on fire"),
    ],
)
def test_an_error_of_the_system_is_one_line_and_names_no_way_back_where_there_is_none(outcome, body, line):
    assert outcome(body, "a", "b") == (1, "", f"{line}: fix that and run `dvc repro`\n")


IMPORTS = """
import signal
print("ready", flush=True)
try:
    signal.pause()
except BaseException:
    pass  # as some libraries do when they are imported
"""


@pytest.fixture
def start_module(tmp_path, environment):
    """Start a module of this project with the given text in the place of its first library, NumPy."""
    for name in ("stages", "tools", "requirements.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    # A shell may have started the tests with SIGINT ignored, and Python then leaves it so.
    start = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"

    def start_module(module, numpy):
        (tmp_path / "numpy.py").write_text(numpy)
        command = [sys.executable, "-c", start, sys.executable, "-m", module, "a", "b"]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **PIPES)

    return start_module


def test_an_interrupt_while_a_stage_imports_is_one_line_and_exit_code_130(start_module):
    process = start_module("stages.resize", IMPORTS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "resize: interrupted: run `dvc repro` to go on\n")
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("module", "handler"), [("tools.results.compare", "default_int_handler"), ("stages.resize", "end_interrupted")]
)
def test_only_a_stage_starts_with_the_interrupt_handler_of_a_stage(start_module, module, handler):
    numpy = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT).__name__)"
    assert start_module(module, numpy).communicate() == ("", f"{handler}\n")


def test_a_defect_keeps_its_traceback_down_to_the_line(outcome):
    returncode, stdout, stderr = outcome("assert raw == resized, 'ours'", "a", "b")
    assert (returncode, stdout) == (1, "")
    assert stderr.startswith("Traceback (most recent call last):\n")
    assert "\n    assert raw == resized, 'ours'\n" in stderr
    assert stderr.endswith("\nAssertionError: ours\n")
