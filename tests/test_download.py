"""Fetching the data set: the sources in order, what each refuses and how it says so; no network but 127.0.0.1.

Four small files stand for the published ones.
"""

import contextlib
import gzip
import hashlib
import multiprocessing
import os
import re
import shutil
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo

from stages import download
from stages.core.command import UserError
from stages.core.fashion_mnist import FILES, Published
from stages.download import SOURCES, SourceError, debian_package, download_registered, read_source, tensorflow_datasets

ROOT = Path(__file__).resolve().parent.parent
NAMED, INSTALLED, REGISTRY, DEBIAN = SOURCES
SHAPES = dict(zip(FILES, [(3, 28, 28), (3,), (2, 28, 28), (2,)], strict=True))
CONTENTS = {
    name: Published(shape, "").header + np.random.default_rng(0).bytes(int(np.prod(shape)))
    for name, shape in SHAPES.items()
}
GZIPPED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}
FIRST = next(iter(CONTENTS))


def registered(addresses):
    """What TensorFlow Datasets would know of the gzip files if they were published at these addresses."""
    contents = {address: GZIPPED[address.rpartition("/")[2]] for address in addresses}
    return {
        address: UrlInfo(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=None)
        for address, content in contents.items()
    }


def download_locally_registered(addresses, directory):
    """Stand for ``download_registered`` in the process of its own, which no monkeypatch reaches."""
    tfds.builder_cls("fashion_mnist").url_infos = registered(addresses)
    download_registered(addresses, directory)


def break_off(addresses, directory):
    """Stand for a download process that something kills."""
    os._exit(9)


def tree(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write(directory, contents):
    directory.mkdir()
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return directory


def refuse(scratch):
    raise SourceError("not here")


@pytest.fixture(autouse=True)
def published(monkeypatch):
    for name, content in CONTENTS.items():
        monkeypatch.setitem(FILES, name, Published(SHAPES[name], hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # test_files.py tests it, and a busy disk takes seconds


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A working directory with params.yaml, in which every source refuses."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download.tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(download, "INSTALLED", tmp_path / "installed")
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    for source in (REGISTRY, DEBIAN):
        monkeypatch.setitem(SOURCES, source, refuse)
    return tmp_path


# The stage


@pytest.mark.parametrize("wanted", list(SOURCES))
def test_sources_are_asked_in_order_until_one_has_the_files(workdir, monkeypatch, capsys, wanted):
    asked = []

    def ask(source, scratch):
        asked.append(source)
        return write(scratch / "found", CONTENTS) if source == wanted else refuse(scratch)

    for source in SOURCES:
        monkeypatch.setitem(SOURCES, source, lambda scratch, source=source: ask(source, scratch))
    download.download(workdir / "data" / "raw")
    assert asked == list(SOURCES)[: len(asked)]
    assert asked[-1] == wanted
    assert tree(workdir / "data" / "raw") == CONTENTS
    assert capsys.readouterr().out.splitlines() == [
        *(f"download: {said}" for source in asked[:-1] for said in (f"trying {source}", f"{source}: not here")),
        f"download: trying {wanted}",
        f"download: the four files came from {wanted}, with the SHA-256 they should have",
    ]
    assert not tree(workdir / "scratch")


@pytest.mark.parametrize("files", [CONTENTS, GZIPPED], ids=["plain", "gzipped"])
def test_a_directory_of_the_users_may_have_the_files_plain_or_gzipped(workdir, monkeypatch, files):
    monkeypatch.setenv("FASHION_MNIST_DIR", str(write(workdir / "mirror", files)))
    download.download(workdir / "raw")
    assert tree(workdir / "raw") == CONTENTS


LABELS = list(CONTENTS)[1]
DAMAGES = {
    "truncated": (f"{FIRST}.gz", GZIPPED[f"{FIRST}.gz"][:-9], "Compressed file ended before the end-of-stream marker"),
    "flipped bit": (f"{FIRST}.gz", GZIPPED[f"{FIRST}.gz"][:-8] + bytes(8), "CRC check failed"),
    "HTML": (f"{FIRST}.gz", b"<!DOCTYPE html>", "Not a gzipped file"),
    "another file": (FIRST, CONTENTS[FIRST][:-1] + b"\0", "expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"),
    "gzip bomb": (f"{FIRST}.gz", gzip.compress(bytes(10**7)), "expected 2368 bytes, found 2369"),
    "images for labels": (LABELS, CONTENTS[FIRST], "expected 11 bytes, found 12"),
}


@pytest.mark.parametrize(("name", "content", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_with_the_file_and_the_next_source_is_asked(
    workdir, monkeypatch, capsys, name, content, reason
):
    mirror = write(workdir / "mirror", {**GZIPPED, name: content})
    monkeypatch.setenv("FASHION_MNIST_DIR", str(mirror))
    write(workdir / "installed", GZIPPED)
    download.download(workdir / "raw")
    _, refusal, _, success = capsys.readouterr().out.splitlines()
    assert re.match(re.escape(f"download: {NAMED}: {mirror / name}: ") + reason, refusal)
    assert success.startswith(f"download: the four files came from {INSTALLED}, ")
    assert tree(workdir / "raw") == CONTENTS


def test_an_incomplete_or_missing_directory_is_refused(tmp_path):
    incomplete = write(tmp_path / "mirror", {name: CONTENTS[name] for name in list(CONTENTS)[:3]})
    last = list(CONTENTS)[3]
    with pytest.raises(SourceError, match=f"^{incomplete} has neither {last} nor {last}.gz$"):
        read_source(incomplete)
    with pytest.raises(SourceError, match=f"^{tmp_path / 'none'} is no directory$"):
        read_source(tmp_path / "none")


@pytest.mark.parametrize("before", [None, {"train-images-idx3-ubyte": b"old"}])
def test_if_all_sources_fail_each_is_named_with_its_reason_and_nothing_is_written(workdir, monkeypatch, before):
    monkeypatch.setenv("FASHION_MNIST_DIR", "")
    if before:
        write(workdir / "raw", before)
    with pytest.raises(UserError) as caught:
        download.download(workdir / "raw")
    assert str(caught.value) == (
        "expected Fashion-MNIST from one of 4 sources, found it in none ("
        f"{NAMED}: not set; {INSTALLED}: {workdir / 'installed'} is no directory; {REGISTRY}: not here; "
        f"{DEBIAN}: not here): connect to the network, install dataset-fashion-mnist, "
        "or set FASHION_MNIST_DIR to a directory with the four files"
    )
    assert (tree(workdir / "raw") if before else (workdir / "raw").exists()) == (before or False)
    assert not tree(workdir / "scratch")


def test_an_error_in_params_yaml_is_found_before_any_source_is_asked(workdir, capsys):
    (workdir / "params.yaml").write_text("")
    with pytest.raises(UserError, match=r"params\.yaml: expected the keys"):
        download.download(workdir / "raw")
    assert not capsys.readouterr().out


# TensorFlow Datasets


class Handler(BaseHTTPRequestHandler):
    """Answer with the files in ``server.files``, by a redirection where a text stands there.

    Of what stands there as a function only half is sent before it is called; half of 2000 bytes, so it says.
    """

    def do_HEAD(self):
        self.send_head()

    def do_GET(self):
        content = self.send_head()
        if callable(content):
            self.wfile.write(bytes(1000))
            content(self)
        elif isinstance(content, bytes):
            self.wfile.write(content)

    def send_head(self):
        name = self.path.rpartition("/")[2]
        if name not in self.server.files:
            self.send_error(404)
            return None
        content = self.server.files[name]
        self.send_response(302 if isinstance(content, str) else 200)
        if isinstance(content, str):
            self.send_header("Location", content)
        elif content is not endless:
            self.send_header("Content-Length", str(2000 if callable(content) else len(content)))
        self.end_headers()
        return content

    def log_message(self, *words):
        pass


def stall(handler):
    handler.server.closing.wait(60)


def end_early(handler):
    """The connection is closed in good order, but before the announced end."""


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def endless(handler):
    """Send until nobody listens; a hundred megabytes if nobody ever stops."""
    with contextlib.suppress(ConnectionError):
        while handler.server.sent < 10**8 and not handler.server.closing.wait(0.001):
            handler.wfile.write(bytes(2**15))
            handler.server.sent += 2**15


@pytest.fixture
def server(monkeypatch):
    """An HTTP server with the four gzip files, whose addresses TensorFlow Datasets has in this process."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.closing, server.sent = dict(GZIPPED), threading.Event(), 0
        server.addresses = [f"http://127.0.0.1:{server.server_port}/data/{name}" for name in GZIPPED]
        monkeypatch.setattr(tfds.builder_cls("fashion_mnist"), "url_infos", registered(server.addresses))
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def test_the_registry_knows_the_four_files():
    addresses = tfds.builder_cls("fashion_mnist").url_infos
    assert {address.rpartition("/")[2] for address in addresses} == set(GZIPPED)


def test_the_download_manager_refuses_an_address_that_is_not_registered(server, tmp_path):
    with pytest.raises(SystemExit, match=r"^1$"):
        download_registered([server.addresses[0], f"{server.addresses[0]}?other"], tmp_path)
    assert (tmp_path / "error").read_text().startswith("ValueError: Missing checksums url: http://127.0.0.1")


def test_the_registered_files_arrive_through_a_process_of_its_own(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "download_registered", download_locally_registered)
    assert read_source(tensorflow_datasets(tmp_path)) == CONTENTS


def test_the_reason_of_a_failed_download_comes_back_from_its_process(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "download_registered", download_locally_registered)
    server.files[f"{FIRST}.gz"] = b"<!DOCTYPE html>"
    with pytest.raises(SourceError, match=f"^NonMatchingChecksumError: Artifact http.*/{FIRST}.gz, "):
        tensorflow_datasets(tmp_path)


def test_a_killed_download_is_said_to_have_broken_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "download_registered", break_off)
    with pytest.raises(SourceError, match=r"^the download broke off$"):
        tensorflow_datasets(tmp_path)


@pytest.fixture
def registry(server, workdir, monkeypatch):
    """The registry's source with that server, in this process, and after it one that has the files."""

    class Process:
        def __init__(self, target, args):
            self.target, self.args, self.exitcode = target, args, 0

        def start(self):
            try:
                self.target(*self.args)
            except SystemExit as end:
                self.exitcode = end.code

        def is_alive(self):
            return False

        def kill(self):
            pass

        join = kill

    monkeypatch.setattr(download.multiprocessing, "get_context", lambda method: SimpleNamespace(Process=Process))
    monkeypatch.setitem(SOURCES, REGISTRY, tensorflow_datasets)
    monkeypatch.setitem(SOURCES, DEBIAN, lambda scratch: write(scratch / "unpacked", CONTENTS))
    return server


@pytest.fixture
def refusal(workdir, capsys):
    """Download; return what was said of the registry, after checking that the next source was asked in its place."""

    def refusal():
        download.download(workdir / "raw")
        *_, refused, _, success = capsys.readouterr().out.splitlines()
        assert success.startswith(f"download: the four files came from {DEBIAN}, ")
        assert tree(workdir / "raw") == CONTENTS
        assert refused.startswith(f"download: {REGISTRY}: ")
        return refused.removeprefix(f"download: {REGISTRY}: ")

    return refusal


SECOND = f"{LABELS}.gz"


def address_of(server, name):
    return next(address for address in server.addresses if address.endswith(f"/{name}"))


def both_hashes(name, content):
    """What is said of a served file that is not the registered one."""
    expected, found = (hashlib.sha256(served).hexdigest() for served in (GZIPPED[name], content))
    return f"has wrong checksum: .*size={len(GZIPPED[name])}, checksum='{expected}'.* Got: .*size=.*'{found}'"


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", GZIPPED[SECOND] + bytes(1000)], ids=["HTML", "more bytes"])
def test_a_served_file_that_is_another_is_refused_with_both_hashes_and_the_next_source_asked(
    registry, refusal, content
):
    registry.files[SECOND] = content
    reason = refusal()
    assert address_of(registry, SECOND) in reason
    assert re.search(both_hashes(SECOND, content), reason)


@pytest.mark.parametrize(
    ("name", "answers", "said"),
    [
        (f"{FIRST}.gz", {f"{FIRST}.gz": f"{FIRST}.gz"}, "TooManyRedirects: Exceeded 30 redirects"),
        (SECOND, {SECOND: "login", "login": b"<!DOCTYPE html>"}, both_hashes(SECOND, b"<!DOCTYPE html>")),
        (SECOND, {SECOND: end_early}, "1000 bytes read, 1000 more expected"),
        (SECOND, {SECOND: reset}, "ConnectionResetError: "),
    ],
    ids=["redirect loop", "redirect to HTML", "early end", "reset"],
)
def test_a_connection_that_does_not_bring_a_file_is_named_and_the_next_source_asked(
    registry, refusal, name, answers, said
):
    registry.files |= answers
    reason = refusal()
    assert re.search(said, reason)
    assert address_of(registry, name) in reason


def test_redirections_are_followed_to_the_file(registry, workdir, capsys):
    registry.files |= {SECOND: "/elsewhere/moved", "moved": "again", "again": GZIPPED[SECOND]}
    download.download(workdir / "raw")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"download: the four files came from {REGISTRY}, ")
    assert tree(workdir / "raw") == CONTENTS


@pytest.mark.parametrize(
    ("answer", "patience", "said"),
    [(stall, 1.0, r"no data for 1 s after \d+ bytes"), (endless, 30.0, r"expected \d+ bytes, found \d+ and no end")],
)
def test_a_download_without_end_is_given_up_and_the_next_source_asked(
    server, workdir, refusal, monkeypatch, answer, patience, said
):
    monkeypatch.setattr(download, "download_registered", download_locally_registered)
    monkeypatch.setattr(download, "STALL_SECONDS", patience)
    monkeypatch.setitem(SOURCES, REGISTRY, tensorflow_datasets)
    monkeypatch.setitem(SOURCES, DEBIAN, lambda scratch: write(scratch / "unpacked", CONTENTS))
    server.files[SECOND] = answer
    assert re.search(said, refusal())
    assert server.sent < 10**8
    assert not multiprocessing.active_children()


@pytest.fixture
def trickle(server, monkeypatch):
    """Replace the process by one that brings a byte every 40 seconds of a clock that only it moves, then ends."""

    def trickle(total):
        state = SimpleNamespace(now=0.0, arrived=0)

        def process(target, args):
            def join(timeout=None):
                state.now += 40
                state.arrived += 1
                (args[1] / "part").write_bytes(bytes(state.arrived))

            def is_alive():
                return state.arrived < total

            return SimpleNamespace(start=lambda: None, join=join, kill=lambda: None, is_alive=is_alive, exitcode=0)

        monkeypatch.setattr(download.multiprocessing, "get_context", lambda method: SimpleNamespace(Process=process))
        monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: state.now))
        return state

    return trickle


def test_a_download_slower_than_the_limit_is_not_given_up_while_bytes_arrive(trickle, tmp_path):
    state = trickle(10)
    assert tensorflow_datasets(tmp_path) == tmp_path
    assert state.now > 5 * download.STALL_SECONDS


def test_what_vanishes_while_the_download_is_measured_is_no_failure(trickle, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    genuine = os.stat

    def vanished(path, **options):
        if Path(path) == tmp_path / "file":
            raise FileNotFoundError(path)
        return genuine(path, **options)

    trickle(1)
    monkeypatch.setattr(os, "stat", vanished)
    assert tensorflow_datasets(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("host", "said"),
    [("closed", "ConnectionRefusedError: "), ("mute", "TimeoutError: timed out"), ("empty", "HTTPError: 404 ")],
)
def test_a_host_that_refuses_never_answers_or_has_no_file_is_named(server, tmp_path, monkeypatch, host, said):
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.1 if host == "mute" else 10)
    server.files = {}
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = server.addresses[0] if host == "empty" else f"http://127.0.0.1:{other.getsockname()[1]}/{FIRST}.gz"
        if host == "closed":
            other.close()
        with pytest.raises(SystemExit, match=r"^1$"):
            download_registered([address], tmp_path)
    message = (tmp_path / "error").read_text()
    assert address in message
    assert message.removeprefix(f"{address}: ").startswith(said)


# Debian


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put scripts in front of all other commands."""

    def commands(scripts):
        for name, script in scripts.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    return commands


@pytest.fixture
def scratch(tmp_path):
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


APT_GET = """echo "$@" >> {log}
case "$*" in *" download dataset-fashion-mnist") : > dataset-fashion-mnist_0.0-1_all.deb; esac"""
UNREACHABLE = """case "$*" in *update) echo "W: Failed to fetch http://mirror/ Temporary failure resolving 'mirror'" >&2
echo "W: Some index files failed to download." >&2;; *) echo "E: Unable to locate package" >&2; exit 100; esac"""
DPKG_DEB = 'test "$1" = -x && mkdir -p "$3/usr/share/datasets" && cp -r {package} "$3/usr/share/datasets/fashion-mnist"'


def test_the_debian_package_is_fetched_and_unpacked_below_the_scratch_directory(tmp_path, scratch, commands):
    package, log = write(tmp_path / "package", GZIPPED), tmp_path / "log"
    commands({"apt-get": APT_GET.format(log=log), "dpkg-deb": DPKG_DEB.format(package=package)})
    directory = debian_package(scratch)
    assert directory == scratch / "unpacked/usr/share/datasets/fashion-mnist"
    assert read_source(directory) == CONTENTS
    update, fetch = log.read_text().splitlines()
    assert update.endswith(" update")
    assert fetch.endswith(" download dataset-fashion-mnist")
    for line in (update, fetch):
        assert f"-o Dir::State::Lists={scratch}/lists -o Dir::Cache={scratch}/cache " in line


@pytest.mark.parametrize(
    ("apt_get", "dpkg_deb", "reason"),
    [
        ("echo done; echo 'W: old lists' >&2; echo 'E: no lists' >&2; exit 100", "", "apt-get: E: no lists"),
        ("exit 100", "", "apt-get: exit code 100"),
        (APT_GET.format(log="/dev/null"), "echo 'no archive' >&2; exit 2", "dpkg-deb: no archive"),
        ("exit 0", "", "apt-get: "),
        (UNREACHABLE, "", "apt-get update: W: Failed to fetch http://mirror/ Temporary failure resolving 'mirror'$"),
    ],
    ids=["on stderr", "silent", "no archive", "nothing fetched", "no network"],
)
def test_a_command_that_fails_is_named_with_its_last_line(scratch, commands, apt_get, dpkg_deb, reason):
    commands({"apt-get": apt_get, "dpkg-deb": dpkg_deb})
    with pytest.raises(SourceError, match=f"^{reason}"):
        debian_package(scratch)


def test_a_command_that_does_not_end_is_given_up(scratch, commands, monkeypatch):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    commands({"apt-get": "exec sleep 600", "dpkg-deb": ""})
    with pytest.raises(SourceError, match=r"^apt-get: no end after 1 s$"):
        debian_package(scratch)


@pytest.mark.parametrize("present", [[], ["apt-get"], ["dpkg-deb"]])
def test_without_both_commands_the_source_refuses(tmp_path, scratch, commands, monkeypatch, present):
    commands(dict.fromkeys(present, ""))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceError, match=r"^no apt-get and dpkg-deb here$"):
        debian_package(scratch)
