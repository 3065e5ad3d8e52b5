"""The counts of docs/reliability.md come from what pytest itself reports."""

import subprocess
import sys
from pathlib import Path

from tools.reliability import tables

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import time
import pytest

@pytest.mark.fault("sources")
@pytest.mark.parametrize("n", range(3))
def test_a(n): time.sleep(0.6)

@pytest.mark.fault("kills")
def test_b(): pass

def test_c(): pass
"""


def test_cases_are_counted_by_kind_and_by_group(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "tests/test_one.py").write_text(TESTS)
    (tmp_path / "tests/test_two.py").write_text("def test_d(): pass\n")
    hooks = (ROOT / "tests/conftest.py").read_text()
    start, end = hooks.index("def pytest_configure"), hooks.index("@dataclass")
    (tmp_path / "tests/conftest.py").write_text(f"import pytest\n\n{hooks[start:end]}")
    command = [sys.executable, "-m", "pytest", "--numprocesses=2", "--junit-xml=tests.xml"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    assert tables(tmp_path / "tests.xml").splitlines() == [
        "| bad input | cases |",
        "|---|---|",
        "| kills | 1 |",
        "| sources | 3 |",
        "| all | 4 |",
        "",
        "| tests of | cases | seconds |",
        "|---|---|---|",
        "| one | 5 | 2 |",
        "| two | 1 | 0 |",
        "| all | 6 | 2 |",
    ]
