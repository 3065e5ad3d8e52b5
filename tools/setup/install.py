"""Install a lock file into the environment whose interpreter runs this. Run by environment.sh, without packages."""

import ast
import compileall
import os
import re
import subprocess
import sys
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


def settings() -> dict[str, str]:
    """Return the environment in which pip has the user's sources, with pip's own precedence, and no other setting."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    given = {name: os.environ[name] for name in map(variable, (*SOURCES, "config-file")) if name in os.environ}
    listing = subprocess.run(
        [*PIP, "config", "list"], env=found | given | {"PIP_QUIET": "0"}, stdout=subprocess.PIPE, text=True, check=True
    )
    found |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for section in ("global.", "install.", ":env:."):  # the later one wins
        for line in listing.stdout.splitlines():
            name, _, value = line.removeprefix(section).partition("=")
            if line.startswith(section) and name in SOURCES:
                found[variable(name)] = str(ast.literal_eval(value))
    return found


def install(lock: Path, root: Path) -> None:
    """Install, compile, and make what names the environment's path name the one that it will have."""
    environment = settings()
    # What a source is built with comes from the lock too.
    (setuptools,) = re.findall(r"^setuptools==(?:.*\\\n)*.*\n", lock.read_text(), re.MULTILINE)
    first = root / "setuptools.txt"
    first.write_text(setuptools)
    for each in (first, lock):
        subprocess.run([*INSTALL, "-r", str(each)], env=environment, check=True)
    first.unlink()
    # Under PYTHONDONTWRITEBYTECODE it would never happen, and imports take half the time.
    compileall.compile_dir(root / "lib", quiet=2, workers=0)
    for path in (root / "bin").iterdir():
        content = path.read_bytes()
        if not path.is_symlink() and b"\0" not in content:
            content = re.sub(rb"\A#!(/bin/sh\n'''exec' )?.*/python.*\n(' '''\n)?", lambda _: SCRIPT, content)
            path.write_bytes(content.replace(b"/.venv/.new", b"/.venv"))


if __name__ == "__main__":
    try:
        install(Path(sys.argv[1]), Path(sys.prefix))
    except subprocess.CalledProcessError as error:  # pip has said why
        sys.exit(error.returncode)
