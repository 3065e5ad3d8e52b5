"""What native code writes to stderr: held back while all goes well, shown whatever ends the process.

No log level stops the greetings of TensorFlow's and JAX's C++ code, and nothing else says why it ended a process: an
unknown flag, no memory, no threads. So they go to a file, and a second process, which lives longer, shows the file.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from stages.core.command import UserError

# Its stdin ends with the process that holds the other end. JAX's coordination service ends a process because of another
# with a page of text: then the line ``lost`` says so, or the line that Python code has written before.
RELAY = """
import os, sys
file, lost = int(sys.argv[1]), sys.argv[2]
sys.stdin.read()
text = os.pread(file, 2**24, 0).decode(errors="replace")
if lost:
    ours = [line for line in text.splitlines(keepends=True) if line.startswith("train: ")]
    text = ours[0] if ours else lost if "Terminating process" in text else text
os.write(1, text.encode())
"""


@contextmanager
def held_back(lost: str = "") -> Iterator[None]:
    """Hold back what the body writes to file descriptor 2, and drop it at the end.

    It is shown if the body raises what ends in a traceback, or if the process ends in it: killed, aborted or by exit.

    Args:
        lost: The line to show instead where JAX ends this process because of another one.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, open(os.dup(2), "wb") as stderr:
        command = [sys.executable, "-ISc", RELAY, str(file.fileno()), lost]
        try:
            relay = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stderr, pass_fds=[file.fileno()], start_new_session=True
            )
        except OSError:
            relay = None
        if not relay:  # no second process to be had: then nothing is held back
            yield
            return
        with relay:
            os.dup2(file.fileno(), 2)
            try:
                yield
            except (UserError, OSError, MemoryError, KeyboardInterrupt):  # one line each, in command.run
                relay.kill()
                raise
            except BaseException:
                sys.stderr.flush()
                relay.communicate()
                raise
            else:
                relay.kill()
            finally:
                sys.stderr.flush()
                os.dup2(stderr.fileno(), 2)
