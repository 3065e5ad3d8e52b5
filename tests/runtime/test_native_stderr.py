"""What native code writes is dropped if all goes well, and shown whatever ends the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.command import UserError
from stages.runtime.native_stderr import held_back

LOST = "train: one of 2 processes was lost\\n"


def write_and_raise(error: BaseException | None) -> None:
    with held_back():
        os.write(2, b"noise\n")
        if error:
            raise error


@pytest.mark.parametrize(
    ("error", "shown"),
    [(None, ""), (UserError("one line"), ""), (KeyboardInterrupt(), ""), (ValueError("broken"), "noise\n")],
)
def test_noise_is_shown_only_with_a_traceback(
    capfd: pytest.CaptureFixture[str], error: BaseException | None, shown: str
) -> None:
    if error:
        with pytest.raises(type(error)):
            write_and_raise(error)
    else:
        write_and_raise(None)

    assert capfd.readouterr().err == shown
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


@pytest.mark.parametrize(
    ("body", "lost", "code", "shown"),
    [
        ("os.abort()", "", -6, "noise\n"),
        ("os.kill(os.getpid(), 9)", "", -9, "noise\n"),
        ("os._exit(1)", "", 1, "noise\n"),
        ("os._exit(1)", LOST, 1, "noise\n"),
        (
            "os.write(2, b'Terminating process because\\n...'); os.abort()",
            LOST,
            -6,
            "train: one of 2 processes was lost\n",
        ),
        ("os.write(2, b'train: ours\\nTerminating process'); os.abort()", LOST, -6, "train: ours\n"),
    ],
)
def test_noise_is_not_lost_with_the_process(body: str, lost: str, code: int, shown: str) -> None:
    script = f"""if True:
        import os
        from stages.runtime.native_stderr import held_back
        with held_back("{lost}"):
            os.write(2, b"noise\\n")
            {body}"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2]
    )

    assert (done.returncode, done.stdout, done.stderr) == (code, "", shown)


def test_nothing_is_held_back_where_no_process_can_be_started(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    write_and_raise(None)

    assert capfd.readouterr().err == "noise\n"
