"""Fetch the four files of Fashion-MNIST and check their SHA-256.

    python -m stages.download data/raw

The sources, in order; whichever it is, the hash of the content decides:

1. ``$FASHION_MNIST_DIR``, a directory with the four files, gzipped or not: machines without network, mirrors.
2. /usr/share/datasets/fashion-mnist, where Debian and Ubuntu put their package dataset-fashion-mnist.
3. The registry of TensorFlow Datasets and its download manager.
4. The same Debian package, fetched with apt-get, without root and without installing it.
"""

import contextlib
import gzip
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from stages.core.command import UserError, run
from stages.core.fashion_mnist import FILES, difference
from stages.core.files import publish
from stages.core.params import load_params

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CONNECT_SECONDS = 10.0
STALL_SECONDS = 60.0
"""A download that brings no byte for so long is given up."""


class SourceError(Exception):
    """A source that did not give the data set, and why, in one line."""


def named_directory(scratch: Path) -> Path:
    """Return the directory that the user names in ``$FASHION_MNIST_DIR``."""
    name = os.environ.get("FASHION_MNIST_DIR")
    if not name:
        raise SourceError("not set")
    return Path(name)


def installed_package(scratch: Path) -> Path:
    """Return the directory of the installed Debian package."""
    return INSTALLED


def tensorflow_datasets(scratch: Path) -> Path:
    """Download the four gzip files at the addresses that TensorFlow Datasets has registered; show its progress bar.

    Its download manager retries for minutes and has no timeout, nor has the search for an address where no name server
    answers: both run in a process that is ended when no more bytes arrive.
    """
    import tensorflow_datasets as tfds  # does not load TensorFlow

    registered = tfds.builder_cls("fashion_mnist").url_infos
    addresses, total = list(registered), sum(info.size for info in registered.values())
    process = multiprocessing.get_context("spawn").Process(target=download_registered, args=(addresses, scratch))
    process.start()
    try:
        arrived, deadline = 0, time.monotonic() + STALL_SECONDS
        while process.is_alive():
            process.join(timeout=0.5)
            size = bytes_in(scratch)
            if size > arrived:
                arrived, deadline = size, time.monotonic() + STALL_SECONDS
            if size > 2 * total:  # beside the files lie a few small ones of the download manager's
                raise SourceError(f"expected {total} bytes, found {size} and no end")
            if time.monotonic() > deadline:
                raise SourceError(f"no data for {STALL_SECONDS:.0f} s after {arrived} bytes")
    finally:
        process.kill()
        process.join()
    if process.exitcode:
        raise SourceError((scratch / "error").read_text() if (scratch / "error").exists() else "the download broke off")
    return scratch


def bytes_in(directory: Path) -> int:
    """Add up the sizes of the files in a directory where another process creates, renames and removes them."""
    total = 0
    for folder, _, names in os.walk(directory):  # passes over folders that vanish
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def download_registered(addresses: list[str], directory: Path) -> None:
    """Download to ``directory`` under the published names; on failure leave the reason in the file ``error``."""
    import requests
    import tensorflow_datasets as tfds

    address = addresses[0]
    try:
        # The first contact is ours, with a time limit.
        requests.head(address, timeout=CONNECT_SECONDS, allow_redirects=True).raise_for_status()
        manager = tfds.download.DownloadManager(
            download_dir=directory / "tfds",
            url_infos=tfds.builder_cls("fashion_mnist").url_infos,
            dataset_name="fashion_mnist",
            force_checksums_validation=True,
        )
        for address in addresses:
            shutil.move(manager.download(address), directory / address.rsplit("/", 1)[1])
    except Exception as error:
        cause = root_cause(error)
        (directory / "error").write_text(cause if address in cause else f"{address}: {cause}")
        raise SystemExit(1) from None


def debian_package(scratch: Path) -> Path:
    """Fetch the Debian package with apt-get into ``scratch`` and unpack it there; needs no root."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise SourceError("no apt-get and dpkg-deb here")
    lists, cache = scratch / "lists", scratch / "cache"
    for directory in (lists, cache):
        (directory / "partial").mkdir(parents=True)
    # Lists and cache of our own: reading needs no root, and the machine's own stay as they are.
    options = [f"Dir::State::Lists={lists}", f"Dir::Cache={cache}", "APT::Sandbox::User=", "Acquire::Languages=none"]
    options += [f"Acquire::{kind}::Timeout={CONNECT_SECONDS:.0f}" for kind in ("http", "https")]
    options += ["Acquire::Retries=1", "Debug::NoLocking=1"]
    apt_get = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    remarks = execute([*apt_get, "update"], scratch, 2 * STALL_SECONDS)
    try:
        execute([*apt_get, "download", PACKAGE], scratch, 10 * STALL_SECONDS)
    except SourceError as error:
        # An update that reached no server succeeds with warnings; then there is no such package.
        cause = next((line for line in remarks if line.startswith("W: ")), None)
        raise SourceError(f"apt-get update: {cause}" if cause else str(error)) from None
    packages = [path.name for path in scratch.glob(f"{PACKAGE}_*.deb")]
    if not packages:
        raise SourceError("apt-get: it said that it downloaded the package, but did not")
    execute(["dpkg-deb", "-x", packages[0], "unpacked"], scratch, STALL_SECONDS)
    return scratch / "unpacked" / INSTALLED.relative_to("/")


def execute(command: list[str], directory: Path, seconds: float) -> list[str]:
    """Run a command quietly in ``directory`` and return what it wrote to stderr.

    Raises:
        SourceError: It failed, with the last line of its output, or did not end within so many seconds.
    """
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise SourceError(f"{command[0]}: no end after {seconds:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise SourceError(f"{command[0]}: {lines[-1]}")
    return done.stderr.splitlines()


SOURCES: dict[str, Callable[[Path], Path]] = {
    "$FASHION_MNIST_DIR": named_directory,
    str(INSTALLED): installed_package,
    "TensorFlow Datasets": tensorflow_datasets,
    f"Debian's {PACKAGE}": debian_package,
}


def read_source(directory: Path) -> dict[str, bytes]:
    """Read the four files from a directory, each plain or gzipped.

    Raises:
        SourceError: A file is missing, damaged, or not the published one.
    """
    if not directory.is_dir():
        raise SourceError(f"{directory} is no directory")
    contents = {}
    for name, published in FILES.items():
        plain, zipped = directory / name, directory / f"{name}.gz"
        path = plain if plain.exists() else zipped
        try:
            with plain.open("rb") if path == plain else gzip.open(zipped) as file:
                content = file.read(published.size + 1)  # no more: a small gzip file may unpack to any size
        except FileNotFoundError:
            raise SourceError(f"{directory} has neither {name} nor {name}.gz") from None
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{path}: {error}") from None
        if found := difference(name, content):
            raise SourceError(f"{path}: {found}")
        contents[name] = content
    return contents


def root_cause(error: BaseException) -> str:
    """Describe the innermost cause of an error on one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def download(raw: Path) -> None:
    """Write the four files, uncompressed, from the first source that has them."""
    load_params()  # an error in params.yaml stops the pipeline at once, not after the download
    refusals = []
    for source, fetch in SOURCES.items():
        print(f"download: trying {source}", flush=True)
        with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as scratch:
            try:
                contents = read_source(fetch(Path(scratch)))
            except SourceError as error:
                refusals.append(f"{source}: {error}")
                print(f"download: {refusals[-1]}", flush=True)
                continue
        publish({raw / name: content for name, content in contents.items()})
        print(f"download: the four files came from {source}, with the SHA-256 they should have")
        return
    raise UserError(
        f"expected Fashion-MNIST from one of {len(SOURCES)} sources, found it in none ({'; '.join(refusals)}): "
        f"connect to the network, install {PACKAGE}, or set FASHION_MNIST_DIR to a directory with the four files"
    )


if __name__ == "__main__":
    run(download)
