"""The page of experiments: its commands queue and run them, and its lines of pandas say what resulted."""

import json
import re
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import Repository

PAGE = (Path(__file__).resolve().parents[2] / "docs/experiments.md").read_text()
(COMMANDS,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(SUMMARY,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow  # a queue of DVC's
def test_the_commands_of_the_page_queue_run_and_show_experiments_two_at_a_time(
    reproduced: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = reproduced.copy(tmp_path / "clone")  # with a queue of its own
    *queue, start, status, show = COMMANDS.splitlines()
    (seeds,) = (line for line in queue if "train.seed" in line)
    values = "'train.seed=range(1,10)'"
    assert values in seeds
    before = clone.outputs()
    clone.dvc(*seeds.replace(values, "train.seed=1").split()[1:])
    clone.dvc("exp", "run", "--queue", "--name", "failing", "-S", "train.lr=2000")
    try:
        # The workers live on in the background, and would keep a pipe open.
        subprocess.run(start.split(), cwd=clone.root, env=clone.environment, stdout=subprocess.DEVNULL, check=True)
        while re.search("Queued|Running", clone.run(*status.split())):
            time.sleep(0.5)
    finally:
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(clone.root):
                process.kill()
    command, _, file = show.partition(" > ")
    (tmp_path / file).write_text(clone.run(*command.split()))

    monkeypatch.chdir(tmp_path)
    exec(SUMMARY, {})  # noqa: S102 - the page's own lines
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["train_loss", "batch.accuracy", "validation.accuracy"]
    assert [row.split()[0] for row in rows] == ["mean", "std", "min", "max"]
    table = pd.read_csv(tmp_path / file)
    assert table["train.seed"].tolist() == [0, 1]  # of the commit and of the experiment; none of the failed one
    accuracies = table["validation.accuracy"].tolist()
    committed = json.loads((clone.root / "metrics/evaluate.json").read_text())["validation"]["accuracy"]
    assert accuracies[0] == committed != accuracies[1]
    assert float(rows[0].split()[-1]) == pytest.approx(sum(accuracies) / 2, abs=1e-4)
    assert (clone.outputs(), clone.changed()) == (before, set())
