"""The environment that make makes: in any place, with the user's sources, whole or not at all. From tiny wheels."""

import hashlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tools.setup import install

ROOT = Path(__file__).resolve().parents[2]
PLACE = "a 'b' $HOME \"c\" #é " + "x" * 128
SWITCHES = {
    "PIP_USER": "1",
    "PIP_TARGET": "elsewhere",
    "PIP_PREFIX": "elsewhere",
    "PIP_ROOT": "elsewhere",
    "PIP_DRY_RUN": "1",
    "PIP_CONSTRAINT": "missing",
    "PIP_PYTHON": "missing",
    "PIP_NO_BINARY": ":all:",
    "PIP_ONLY_BINARY": "none",
    "PIP_REQUIREMENT": "missing",
    "UV_DEFAULT_INDEX": "missing",
    "PYTHONWARNINGS": "error",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": "/dev/null/none",
}
FAKE = """case $1 in
-E) echo "$0" ;;
-V) echo Python 3.12.1 ;;
-I) mkdir .venv/.new; """


def wheel(folder: Path, name: str, files: Mapping[str, str | bytes], version: str = "1") -> str:
    """Write a wheel; return its line of a lock file."""
    info = f"{name}-{version}.dist-info"
    files = dict(files) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": "".join(f"{file},,\n" for file in files)}).items():
            member = zipfile.ZipInfo(file)
            member.external_attr = 0o100755 << 16  # uv is a program
            archive.writestr(member, text)
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the environment is made of, and the wheels of its short lock."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "wheels").mkdir()
    entry = {
        "tiny.py": "def main(): print('tiny')",
        "tiny-1.dist-info/entry_points.txt": "[console_scripts]\ntiny = tiny:main",
    }
    uv = importlib.metadata.distribution("uv")
    program = {"uv/__init__.py": (Path(uv.locate_file("uv")) / "__init__.py").read_bytes()}
    program |= {
        f"uv/{name}.py": (Path(uv.locate_file("uv")) / f"{name}.py").read_bytes() for name in ("__main__", "_find_uv")
    }
    program[f"uv-{uv.version}.data/scripts/uv"] = (Path(sys.executable).parent / "uv").read_bytes()
    lock = wheel(folder / "wheels", "setuptools", {"setuptools.py": ""}) + wheel(folder / "wheels", "tiny", entry)
    lock += wheel(folder / "wheels", "uv", program, uv.version)
    (folder / "requirements.lock").write_text(lock)
    tiny_hash = hashlib.sha256((folder / "wheels/tiny-1-py3-none-any.whl").read_bytes()).hexdigest()
    (folder / "requirements-gpu.lock").write_text(lock.replace(tiny_hash, "0" * 64))
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    shutil.copytree(ROOT / "tools/setup", folder / "tools/setup")
    return folder


def variables(source: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "MAKE", "PYTHON"))}
    ours = {"PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(source / "wheels")}
    return kept | ours | more


def make(folder: Path, environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "environment", *words], cwd=folder, env=environment, capture_output=True, text=True)


def message(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that is ours; make adds one of its own."""
    assert done.returncode != 0, done.stdout
    ours, makes = done.stderr.splitlines()
    assert makes.startswith("make: *** ")
    return ours.removeprefix("environment: ")


def tiny(folder: Path) -> str:
    return subprocess.run([folder / ".venv/bin/tiny"], stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in a difficult place, under every setting that could lead pip astray, on another disk.

    Two makes at once make it.
    """
    folder = shutil.copytree(source, tmp_path_factory.mktemp("made") / PLACE)
    (folder / "disk").mkdir()
    (folder / ".venv").symlink_to("disk")
    environment, pipes = variables(source, **SWITCHES), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [
        subprocess.Popen(["make", "environment"], cwd=folder, env=environment, text=True, **pipes) for _ in range(2)
    ]
    texts = [process.communicate() for process in both]
    assert [(process.returncode, errors) for process, (_, errors) in zip(both, texts, strict=True)] == [(0, "")] * 2
    outputs = [output.splitlines() for output, _ in texts]
    assert sum("environment: ready" in lines for lines in outputs) == 1
    assert ["environment: waiting for another make that makes .venv"] in outputs
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it whose record is that of an environment made there."""
    folder = shutil.copytree(made, tmp_path / PLACE, symlinks=True)
    record = folder / ".venv/record"
    record.write_text(record.read_text().replace(str(made), str(folder)))
    return folder


@pytest.mark.slow  # an environment
def test_it_works_where_it_is_and_is_made_once(made: Path, source: Path) -> None:
    assert tiny(made) == "tiny\n"
    activated = ["sh", "-c", '. .venv/bin/activate && command -v tiny && echo "$PS1"']
    printed = subprocess.run(
        activated, cwd=made, env={"PS1": "$ "}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert printed == f"{made / '.venv'}/bin/tiny\n(.venv) $ \n"
    assert (made / ".venv").is_symlink()
    assert len([*made.glob("disk/lib/*/site-packages/__pycache__/tiny.*.pyc")]) == 1
    assert sorted(path.name for path in (made / "disk").glob(".*")) == []
    assert not (made / "elsewhere").exists()
    done = make(made, variables(source))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow  # copies of an environment
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sound", lambda folder: None),
        ("moved", lambda folder: folder.rename(folder.with_name("moved"))),
        ("no record", lambda folder: (folder / ".venv/record").unlink()),
        ("another lock", lambda folder: (folder / "requirements.lock").write_text("setuptools==2\n")),
        ("no interpreter", lambda folder: (folder / ".venv/bin/python").unlink()),
        ("no environment", lambda folder: (folder / ".venv/pyvenv.cfg").unlink()),
    ],
)
def test_it_is_trusted_only_as_it_was_made(
    copy: Path, source: Path, name: str, change: Callable[[Path], object]
) -> None:
    change(copy)
    done = make(next(copy.parent.iterdir()), variables(source, PYTHON="absent"))

    if name == "sound":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert message(done).startswith(
            "expected Python 3.11, 3.12 or 3.13, found no absent: install one, or name it: "
        )


@pytest.mark.slow  # an environment
def test_a_failed_rebuild_keeps_the_former_and_the_choice_and_says_the_installers_own_error(
    copy: Path, source: Path
) -> None:
    secret = variables(source, PIP_EXTRA_INDEX_URL="http://me:secret@127.0.0.1:9/simple", PIP_RETRIES="0")
    failed = message(make(copy, secret, "EXTRAS=gpu"))

    assert failed.startswith("installation failed: error: ")
    assert "Hash mismatch for `tiny==1`" in failed
    assert "secret" not in failed
    assert tiny(copy) == "tiny\n"
    assert not (copy / ".venv/.new").exists()
    done = make(copy, variables(source, PYTHON="absent"))
    assert (copy / ".venv/lock").read_text() == "requirements-gpu.lock\n"
    assert message(done).startswith("expected Python")


@pytest.mark.slow  # an environment
def test_an_interrupt_leaves_the_former(copy: Path, source: Path) -> None:
    (copy / "requirements.lock").write_text("setuptools==2\n")
    python = copy / "python"
    python.write_text(f"#!/bin/sh\n{FAKE} exec sleep 60 ;;\nesac\n")
    python.chmod(0o755)
    environment = variables(source, PYTHON=str(python))
    process = subprocess.Popen(
        ["make", "environment"],
        cwd=copy,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (copy / ".venv/.new").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)

    assert process.wait() != 0
    assert not (copy / ".venv/.new").exists()
    assert tiny(copy) == "tiny\n"


@pytest.mark.parametrize(
    ("written", "error"),
    [
        (
            "Looking in indexes: i\nCould not fetch URL u: 401 Client Error - skipping\nERROR: No match\n"
            "Exception information:\nTraceback",
            "Could not fetch URL u: 401 Client Error - skipping\nERROR: No match\n",
        ),
        ("Processing p\nERROR: NO HASH\n  Expected a\n", "ERROR: NO HASH\n  Expected a\n"),
        ("error: uv has one line\n", "error: uv has one line\n"),
    ],
)
def test_the_error_of_an_installer_is_whole_and_has_its_cause(written: str, error: str) -> None:
    assert install.error_of(written) == error


def test_a_package_without_a_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("tiny==1\n")
    with pytest.raises(SystemExit, match="must have a hash"):
        install.run([*install.UV_SYNC, "--dry-run", str(tmp_path / "requirements.lock")], dict(os.environ))
    assert "--require-hashes" in install.PIP_INSTALL


def without(*modules: str) -> str:
    """An interpreter that lacks some modules."""
    hidden = "; ".join(f"sys.modules['{name}'] = None" for name in modules)
    return f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; {hidden}; exec(sys.argv[1])" "$3"\n'


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("#!/bin/sh\necho Python 3.9.2; exit 1\n", "found {}: Python 3.9.2: install one, or name it: make PYTHON="),
        ("#!/bin/sh\nexit 127\n", "found {}: does not start: "),
        (without("_sqlite3"), "without sqlite3: install one"),
        (without("_ctypes", "_bz2", "_ssl", "zlib"), "without bz2, ctypes, ssl, zlib"),
        (without("ensurepip"), "without ensurepip (on Debian and Ubuntu: apt-get install python3-venv): install one"),
        (f"#!/bin/sh\n{FAKE} echo Error: no space left; exit 1 ;;\nesac\n", "venv failed: Error: no space left"),
    ],
)
def test_what_is_wrong_with_an_interpreter_is_one_line(
    tmp_path: Path, source: Path, python: str, expected: str
) -> None:
    folder = shutil.copytree(source, tmp_path / "folder")
    (folder / "python").write_text(python)
    (folder / "python").chmod(0o755)
    done = make(folder, variables(source, PYTHON=str(folder / "python")))

    assert expected.format(folder / "python") in message(done)


@pytest.mark.parametrize(("place", "cause"), [("a:b", "contains the PATH separator"), ("file", "File exists")])
def test_a_place_that_cannot_work_has_its_cause(tmp_path: Path, source: Path, place: str, cause: str) -> None:
    folder = shutil.copytree(source, tmp_path / place)
    if place == "file":
        (folder / ".venv").touch()
    assert cause in message(make(folder, variables(source)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"system": "[global]\nindex-url = s", "user": "[global]\nindex-url = u"},
            {"INDEX_URL": "u", "DEFAULT_INDEX": "u"},
        ),
        (
            {"user": "[global]\nindex-url = u", "file": "[global]\nindex-url = f"},
            {"INDEX_URL": "f", "DEFAULT_INDEX": "f"},
        ),
        ({"file": "[global]\nindex-url = f", "PIP_INDEX_URL": "e"}, {"INDEX_URL": "e", "DEFAULT_INDEX": "e"}),
        ({"user": "[install]\nindex_url = i\n[global]\nindex-url = g"}, {"INDEX_URL": "i", "DEFAULT_INDEX": "i"}),
        (
            {"user": "[global]\nextra-index-url = a\n  b\ntrusted-host = h\ncert = c\n[install]\ntarget = t"},
            {"EXTRA_INDEX_URL": "a\nb", "TRUSTED_HOST": "h", "CERT": "c", "INDEX": "a b", "INSECURE_HOST": "h"},
        ),
        (
            {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "f g", **SWITCHES},
            {"NO_INDEX": "1", "FIND_LINKS": "f,g", "NO_CACHE": "1"},
        ),
    ],
)
def test_pip_and_uv_get_the_users_sources_with_pips_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], expected: dict[str, str]
) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    for name, value in settings.items():
        if name.islower():
            (tmp_path / name / "pip").mkdir(parents=True)
            (tmp_path / name / "pip/pip.conf").write_text(value)
        else:
            monkeypatch.setenv(name, value)
    if "file" in settings:
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "file/pip/pip.conf"))

    pip, uv = install.environments()
    # Where the system has a pip.conf of its own, its sources stay.
    assert (
        expected.items()
        <= {
            **{name.removeprefix("PIP_"): value for name, value in pip.items() if name.startswith("PIP_")},
            **{name.removeprefix("UV_"): value for name, value in uv.items() if name.startswith("UV_")},
        }.items()
    )
    ours = {"PIP_CONFIG_FILE", "PIP_NO_INPUT", "PIP_DISABLE_PIP_VERSION_CHECK"}
    assert {name for name in pip if name.startswith("PIP_")} - set(map(install.variable, install.UV)) == ours
    assert {name for name in uv if name.startswith("UV_")} <= {*install.UV.values()}
    assert not [name for name in (*pip, *uv) if name.startswith("UV_") and name in pip]
