"""Run the tests and count what docs/reliability.md reports: bad inputs by kind, and the time of each group.

    python -m tools.reliability

A test that feeds bad input is marked ``@pytest.mark.fault("<kind>")``. Times are seconds of the tests' own; the tests
run side by side, so the whole takes less.
"""

import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree


def tables(report: Path) -> str:
    """Return the counts in pytest's JUnit XML file ``report`` as Markdown."""
    kinds, tests = Counter[str](), Counter[str]()
    seconds: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it a moment ago
        group = case.attrib["classname"].removeprefix("tests.test_")
        tests[group] += 1
        seconds[group] += float(case.attrib["time"])
        for entry in case.iter("property"):
            if entry.attrib["name"] == "fault":
                kinds[entry.attrib["value"]] += 1
    lines = ["| bad input | cases |", "|---|---|"]
    lines += [f"| {kind} | {count} |" for kind, count in sorted(kinds.items())]
    lines += [f"| all | {kinds.total()} |"]
    lines += ["", "| tests of | cases | seconds |", "|---|---|---|"]
    lines += [f"| {group} | {tests[group]} | {seconds[group]:.0f} |" for group in sorted(tests)]
    lines += [f"| all | {tests.total()} | {sum(seconds.values()):.0f} |"]
    return "\n".join(lines)


def main() -> None:
    """Run pytest and print the tables; exit with pytest's code."""
    with tempfile.TemporaryDirectory(prefix="reliability-") as scratch:
        report = Path(scratch) / "tests.xml"
        done = subprocess.run([sys.executable, "-m", "pytest", "--quiet", f"--junit-xml={report}"])
        if report.exists():
            print(f"\n{tables(report)}")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
