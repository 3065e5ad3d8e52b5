"""Install a lock file into the environment whose interpreter runs this. Run by environment.sh, without packages."""

import ast
import compileall
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# fmt: off
SOURCES = (
    "index-url", "extra-index-url", "no-index", "find-links", "cert", "client-cert", "trusted-host", "proxy", "timeout",
    "default-timeout", "retries", "cache-dir", "no-cache-dir", "keyring-provider", "use-feature",
)
"""The settings of pip that say where packages come from. Others (user, target, no-binary, ...) say what is done."""
PIP = (sys.executable, "-I", "-m", "pip")
INSTALL = (
    *PIP, "install", "--progress-bar=off", "--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517",
    "--no-compile",
)
# fmt: on
SCRIPT = b'#!/bin/sh\n\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")"/python "$0" "$@"\n\' \'\'\'\n'
"""How a script finds the interpreter beside it, wherever both are: ``#!`` takes 127 bytes and no space."""


def variable(name: str) -> str:
    """Return the environment variable of a setting of pip's."""
    return "PIP_" + name.upper().replace("-", "_")


def run(command: list[str], environment: dict[str, str], entries: str = "") -> str:
    """Return what pip wrote to stdout; end with all that it wrote if it fails."""
    done = subprocess.run(command, input=entries, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def settings() -> dict[str, str]:
    """Return the environment in which pip has the user's sources, with pip's own precedence, and no other setting."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    given = {name: os.environ[name] for name in map(variable, (*SOURCES, "config-file")) if name in os.environ}
    listing = run([*PIP, "config", "list"], found | given | {"PIP_QUIET": "0"})
    found |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for section in ("global.", "install.", ":env:."):  # the later one wins
        for line in listing.splitlines():
            name, _, value = line.removeprefix(section).partition("=")
            if line.startswith(section) and name in SOURCES:
                found[variable(name)] = str(ast.literal_eval(value))
    return found


def install(lock: Path, root: Path) -> None:
    """Install, compile, and make what names the environment's path name the one that it will have."""
    environment = settings()

    def install_entries(entries: list[str]) -> None:
        run([*INSTALL, "-r", "/dev/stdin"], environment, "".join(entries))

    entries = re.findall(r"^\w(?:.*\\\n)*.*\n", lock.read_text(), re.MULTILINE)
    # What a source is built with comes from the lock too.
    install_entries([entry for entry in entries if entry.startswith("setuptools==")])
    # One pip installs one package after the other, on one core.
    with ThreadPoolExecutor() as pool:
        list(pool.map(install_entries, (entries[::2], entries[1::2])))
    # Under PYTHONDONTWRITEBYTECODE it would never happen, and imports take half the time.
    compileall.compile_dir(root / "lib", quiet=2, workers=0)
    for path in (root / "bin").iterdir():
        content = path.read_bytes()
        if not path.is_symlink() and b"\0" not in content:
            content = re.sub(rb"\A#!(/bin/sh\n'''exec' )?.*/python.*\n(' '''\n)?", lambda _: SCRIPT, content)
            path.write_bytes(content.replace(b"/.venv/.new", b"/.venv"))


if __name__ == "__main__":
    install(Path(sys.argv[1]), Path(sys.prefix))
