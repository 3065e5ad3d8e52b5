"""Install a lock file into the environment whose interpreter runs this. Run by environment.sh, without packages.

pip, which every Python brings, installs uv and what sources are built with; uv installs the rest, in a third of pip's
time. Both get their packages from where the user's pip does: pip's settings are the only ones that are read.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "no-index": "UV_NO_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "retries": "UV_HTTP_RETRIES",
    "no-cache-dir": "UV_NO_CACHE",
    "keyring-provider": "UV_KEYRING_PROVIDER",
}
"""The settings of pip that say where packages come from, and uv's variable for each. Others say what is done."""
PIP = (sys.executable, "-I", "-m", "pip")
PIP_INSTALL = (*PIP, "install", "-vv", "--progress-bar=off", "--require-hashes", "--no-deps", "-r", "/dev/stdin")
# uv stops at the first index that has a package; pip, and so this, takes the version from whichever has it.
UV_SYNC = (
    *(sys.executable, "-I", "-m", "uv", "--no-config", "pip", "sync", "--quiet", "--python", sys.executable),
    *("--require-hashes", "--no-build-isolation", "--index-strategy=unsafe-best-match", "--compile-bytecode"),
)
SCRIPT = b'#!/bin/sh\n\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")"/python "$0" "$@"\n\' \'\'\'\n'
"""How a script finds the interpreter beside it, wherever both are: ``#!`` takes 127 bytes and no space."""


def variable(name: str) -> str:
    """Return the environment variable of a setting of pip's."""
    return "PIP_" + name.upper().replace("-", "_")


def run(command: list[str], environment: dict[str, str], entries: str = "") -> str:
    """Return what a command wrote to stdout; end with its error if it fails."""
    done = subprocess.run(command, input=entries, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(error_of(done.stdout + done.stderr))
    return done.stdout


def error_of(written: str) -> str:
    """Return the error in what pip or uv wrote, after the last cause of pip's that it writes only under ``-vv``."""
    causes = re.findall(r"Could not fetch URL .*", written)
    found = re.search(r"^ERROR: .*?(?=^Exception information:|\Z)", written, re.MULTILINE | re.DOTALL)
    return "\n".join([*causes[-1:], found[0] if found else written])


def settings() -> dict[str, str]:
    """Return the user's sources of packages by pip's names, with pip's own precedence."""
    given = {name for name in os.environ if name.startswith("PIP_")} - {*map(variable, UV), "PIP_CONFIG_FILE"}
    kept = {name: value for name, value in os.environ.items() if name not in given}
    listing = run([*PIP, "config", "list"], kept | {"PIP_QUIET": "0"})
    found = {}
    for section in ("global.", "install.", ":env:."):  # the later one wins
        for line in listing.splitlines():
            name, _, value = line.removeprefix(section).partition("=")
            if line.startswith(section) and name in UV:
                found[name] = str(ast.literal_eval(value))
    return found


def environments() -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of pip and that of uv: each with the same sources and no other setting of its own."""
    sources = settings()
    neither = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip |= {variable(name): value for name, value in sources.items()}
    # With an index named, uv would ask it in spite of no-index.
    offline = sources.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t")
    unused = ("index-url", "extra-index-url") if offline else ("no-index",)
    uv = {
        UV[name]: ("," if name == "find-links" else " ").join(value.split())
        for name, value in sources.items()
        if name not in unused
    }
    # Without a home, as a container's user may be, there is no place for uv's cache.
    if not os.access(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~"), os.W_OK):
        uv["UV_NO_CACHE"] = "1"
    return neither | pip, neither | uv


def install(lock: Path, root: Path) -> None:
    """Install, compile, and make what names the environment's path name the one that it will have."""
    pip, uv = environments()
    first = re.findall(r"^(?:setuptools|uv)==(?:.*\\\n)*.*\n", lock.read_text(), re.MULTILINE)
    run(list(PIP_INSTALL), pip, "".join(first))
    # Modules are compiled now: under PYTHONDONTWRITEBYTECODE they never would be, and imports take half the time.
    run([*UV_SYNC, str(lock)], uv)
    place = os.fsencode(shlex.quote(str(root.parent)))
    for path in (root / "bin").iterdir():
        content = path.read_bytes()
        if not path.is_symlink() and b"\0" not in content:
            content = re.sub(rb"\A#!(/bin/sh\n'''exec' )?.*/python.*\n(' '''\n)?", lambda _: SCRIPT, content)
            content = content.replace(b"/.venv/.new", b"/.venv")
            if path.name.startswith("activate"):  # Pythons before 3.13 do not quote the path, and the prompt names it
                content = re.sub(rb"(?m)^( *(?:export )?VIRTUAL_ENV=)[^$].*$", lambda line: line[1] + place, content)
                content = content.replace(b".new", b".venv")
            path.write_bytes(content)


if __name__ == "__main__":
    install(Path(sys.argv[1]), Path(sys.prefix))
