"""Results shared through a remote: an SSH server on the loopback interface, keys and host keys included."""

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from conftest import Repository

pytestmark = pytest.mark.slow  # an SSH server and two clones
PAGE = (Path(__file__).resolve().parent.parent / "docs/sharing.md").read_text()
(COMMANDS,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ADD, PUSH, PULL = (line.split()[1:] for line in COMMANDS.splitlines())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Path]]:
    """An SSH server with SFTP: its port, the key file that it lets in, and the folder that it serves as ``/``."""
    folder = tmp_path_factory.mktemp("server")
    keys, served = folder / "key", folder / "served"
    served.mkdir()
    client, host = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    client.write_private_key(keys)
    client.write_public_key(f"{keys}.pub")
    loop = asyncio.new_event_loop()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host],
            authorized_client_keys=f"{keys}.pub",
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(served)),
        )

    acceptor = loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield acceptor.get_port(), keys, served
    finally:
        loop.call_soon_threadsafe(acceptor.close)
        asyncio.run_coroutine_threadsafe(acceptor.wait_closed(), loop).result(timeout=30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def pushed(
    reproduced: Repository, server: tuple[int, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """A clone with the remote that the page describes; two runs were made in it and pushed with their run cache."""
    port, key, _ = server
    first = reproduced.copy(tmp_path_factory.mktemp("remote") / "first")
    *add, address = ADD
    assert address == "ssh://you@server/path"
    first.dvc(*add, f"ssh://tester@127.0.0.1:{port}/dvc")
    first.dvc("remote", "modify", "--local", "team", "keyfile", str(key))
    first.set_parameter("train.lr", 0.2)
    first.repro()
    first.set_parameter("train.lr", 0.1)
    first.repro()
    first.commit("Add the team's remote")
    first.dvc(*PUSH)
    return first


@pytest.fixture
def second(pushed: Repository, server: tuple[int, Path, Path], tmp_path: Path) -> Repository:
    """A colleague's clone: Git's content, a key, and no cache."""
    clone = pushed.clone(tmp_path / "second")
    clone.dvc("remote", "modify", "--local", "team", "keyfile", str(server[1]))
    return clone


def test_what_was_pushed_is_on_the_server_under_the_hashes_of_the_lock(
    pushed: Repository, server: tuple[int, Path, Path]
) -> None:
    cached = {path: md5 for path, md5 in pushed.outputs().items() if path.startswith("data/")}
    assert cached.keys() == {"data/raw", "data/resized", "data/model.npz", "data/errors.npz"}
    there = {path.parent.name + path.name for path in (server[2] / "dvc/files/md5").rglob("*") if path.is_file()}
    assert set(cached.values()) <= there


def test_a_second_clone_pulls_and_repro_runs_nothing_until_it_goes_back_to_results_that_are_in_git(
    pushed: Repository, second: Repository
) -> None:
    second.dvc(*PULL)

    assert second.dvc("status") == "Data and pipelines are up to date.\n"
    assert second.repro().ran == []
    assert second.changed() == set()
    for name in ("data/model.npz", "data/raw/train-labels-idx1-ubyte"):
        assert (second.root / name).read_bytes() == (pushed.root / name).read_bytes()
    second.set_parameter("train.lr", 0.2)
    assert second.repro().ran == ["train", "evaluate", "render"]


def test_a_key_that_the_server_does_not_know_gets_nothing(second: Repository, tmp_path: Path) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "stranger")
    second.dvc("remote", "modify", "--local", "team", "keyfile", str(tmp_path / "stranger"))

    with pytest.raises(AssertionError, match="Permission denied"):
        second.dvc("pull")
    assert not (second.root / "data/model.npz").exists()


def test_the_committed_configuration_names_no_key(pushed: Repository) -> None:
    assert "keyfile" not in (pushed.root / ".dvc/config").read_text()
    assert pushed.git("check-ignore", ".dvc/config.local").strip() == ".dvc/config.local"


def test_the_model_is_fetched_from_another_repository(pushed: Repository, tmp_path: Path) -> None:
    elsewhere = Repository(tmp_path, pushed.environment)
    elsewhere.dvc("get", str(pushed.root), "data/model.npz", "--out", "model.npz")

    assert (tmp_path / "model.npz").read_bytes() == (pushed.root / "data/model.npz").read_bytes()
