"""The pages: their commands run, their numbers are the committed ones, their links lead somewhere."""

import json
import re
import shlex
from dataclasses import fields, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Repository

from stages.core import params
from stages.core.way_back import GO_BACK

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in (ROOT, ROOT / "data", ROOT / "docs")
    for path in sorted(folder.glob("*.md"))
}
README, EXPERIMENTS, CARD = (PAGES[name] for name in ("README.md", "docs/experiments.md", "docs/model-card.md"))
COMMANDS = {
    name: "".join(re.findall(r"^```(?:sh|console)\n(.*?)^```$", page, re.M | re.S)).replace("\\\n", "").splitlines()
    for name, page in PAGES.items()
}
IN_TEXT = {
    " ".join(command.split())
    for page in PAGES.values()
    for command in re.findall(
        r"`((?:dvc|git|python|\.venv/bin/\S+) [^`]+)`", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    )
}
RUN_HERE = COMMANDS["README.md"][2:]
"""Those of README.md after ``make repro`` and ``make test``, which CI runs from nothing."""
NOT_RUN = {
    "make repro EXTRAS=gpu": "needs a GPU",
    "make verify": "trains in every way of the machine; tests/proof/test_verify.py runs rows of it",
    "make bench": "measures for minutes; tests/proof/test_bench.py runs its parts",
    "make kills": "kills for an hour; tests/proof/test_kills.py runs a short series",
    "srun": "needs Slurm; tests/runtime/test_distributed.py starts processes with its variables",
    "export JAX_": "needs several hosts; tests/runtime/test_distributed.py starts the three with such variables",
    "JAX_PROCESS_ID=": "the same",
    "dvc commit --force train": "tests/runtime/test_distributed.py runs it after such processes",
    "dvc exp show": "run below",
    "uvx jupytext": "needs a registry of packages, and is no dependency",
    "uv run --no-project": "the same, and a browser",
    "apt-get install qemu": "needs root and Debian's packages",
    "debootstrap": "the same",
    "chroot": "the same",
    GO_BACK.replace("dvc.lock", "dvc.lock params.yaml"): "tests/core/test_way_back.py runs it",
}
"""The commands of other pages, by their first words."""
RUN_BELOW = {
    "dvc artifacts get",
    "dvc exp apply NAME",
    "dvc exp push origin",
    "dvc metrics diff",
    "dvc metrics diff --precision 3",
    "dvc params diff",
    "dvc plots show",
    "dvc push",
    "dvc repro",
    "git clone --bare",
    "git restore dvc.lock",
    "git restore -SW -s HEAD dvc.lock metrics plots",
    "git tag -a softmax-regression@v1.0.0",
}
RUN_BY = {
    ".venv/bin/dvc config --local core.no_scm true": "tests/setup/test_repair.py",
    "dvc get ADDRESS-OF-THIS-REPOSITORY data/model.npz": "tests/test_remote.py",
    "dvc plots diff HEAD~1": "tests/test_pipeline.py",
    "dvc remote modify --local team keyfile ...": "tests/test_remote.py",
    "dvc status": "tests/test_remote.py",
    "git fetch --unshallow": "tests/results/test_compare.py",
    "git init": "tests/setup/test_repair.py",
    "python -m tools.proof.gpu_program": "tests/proof/test_gpu_program.py",
}
"""The commands in the running text: those that tests of this module run, and those that others do."""
NOT_RUN_IN_TEXT = {
    ".venv/bin/pre-commit install": "changes Git's hooks; tests/test_workflow.py runs the hooks themselves",
    ".venv/bin/python -m tools.setup.schema": "writes the committed file; tests/setup/test_schema.py compares it",
    ".venv/bin/python -m tools.proof.cuda_libraries": "is about a machine; its test calls what it prints",
    "dvc remote add --help": "prints DVC's own help",
    "python -X importtime": "the start of a command for a profile",
}
EVALUATED = json.loads((ROOT / "metrics/evaluate.json").read_text())
TRAINED = json.loads((ROOT / "metrics/train.json").read_text())


def test_every_command_is_run_or_has_a_reason_why_not() -> None:
    others = [line for name, lines in COMMANDS.items() if name != "README.md" for line in lines]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in others)] == []
    assert [line for line in others if not line.startswith(tuple(NOT_RUN))] == []
    assert COMMANDS["README.md"][:2] == ["make repro", "make test"]
    # The blocks called bash are run by tests/results/test_experiments.py and tests/test_remote.py.
    assert [name for name, page in PAGES.items() if "```bash" in page] == ["docs/experiments.md", "docs/sharing.md"]


def test_every_target_that_is_named_is_one_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES.values() for target in re.findall(r"(?:^|`)make ([a-z-]+)", page, re.MULTILINE)}
    assert named - targets == set()


def test_every_command_in_the_text_is_run_too() -> None:
    assert {*RUN_BELOW, *RUN_BY, *NOT_RUN_IN_TEXT} == IN_TEXT
    assert [test for test in RUN_BY.values() if not (ROOT / test).exists()] == []


@pytest.mark.slow  # runs of dvc
def test_what_experiments_names_does_what_it_says(pipeline: Repository, tmp_path: Path) -> None:
    (show,) = (line for line in COMMANDS["docs/experiments.md"] if line.startswith("dvc exp show"))
    pipeline.dvc("exp", "run", "--name", "high", "-S", "train.lr=0.3")
    terminal = replace(pipeline, environment={**pipeline.environment, "COLUMNS": "80"})
    table = terminal.run(*shlex.split(show)).splitlines()
    assert any("high" in line and "0.3" in line for line in table)
    assert max(map(len, table)) <= 80
    changes = pipeline.dvc("metrics", "diff", "--precision", "3")
    assert re.search(r" 0\.\d{1,3} ", changes)
    assert not re.search(r"\.\d{4}", changes)
    pipeline.dvc("plots", "show")
    assert (pipeline.root / "dvc_plots/index.html").exists()

    pipeline.git("restore", ".")
    pipeline.dvc("exp", "apply", "high")
    assert "lr: 0.3" in (pipeline.root / "params.yaml").read_text()
    pipeline.run("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "bare"))
    with pytest.raises(AssertionError, match="exit code"):
        Repository(tmp_path / "bare", pipeline.environment).dvc("metrics", "diff")
    pipeline.git("remote", "add", "origin", str(tmp_path / "bare"))
    pipeline.dvc("remote", "add", "--default", "team", str(tmp_path / "remote"))
    pipeline.dvc("exp", "push", "origin", "high")
    pipeline.dvc("push")
    assert "high" in pipeline.dvc("exp", "list", "origin")


@pytest.mark.slow  # runs of dvc
def test_the_model_is_got_by_its_name_where_an_annotated_tag_is(pipeline: Repository, tmp_path: Path) -> None:
    elsewhere = Repository(tmp_path, pipeline.environment)
    get = ("artifacts", "get", str(pipeline.root), "softmax-regression")
    pipeline.git("tag", "softmax-regression@v1.0.0")
    with pytest.raises(AssertionError, match="exit code"):
        elsewhere.dvc(*get)
    pipeline.git("tag", "--force", "-a", "softmax-regression@v1.0.0", "--message", "The model")
    elsewhere.dvc(*get)

    assert (tmp_path / "model.npz").read_bytes() == (pipeline.root / "data/model.npz").read_bytes()


@pytest.mark.slow  # a run of dvc
def test_a_conflict_in_dvc_lock_is_settled_as_troubleshooting_says(pipeline: Repository) -> None:
    for branch, columns in (("theirs", 4), ("ours", 5)):
        pipeline.git("switch", "--quiet", "--create", branch, "HEAD~1" if branch == "ours" else "HEAD")
        pipeline.set_parameter("render.columns", columns)
        pipeline.repro()
        pipeline.commit(branch)
    before = (pipeline.root / "dvc.lock").read_text()
    with pytest.raises(AssertionError, match=r"Merge conflict in dvc\.lock"):
        pipeline.git("merge", "theirs")
    pipeline.git("checkout", "--ours", "params.yaml")
    pipeline.git("restore", "-SW", "-s", "HEAD", "dvc.lock", "metrics", "plots")
    assert (pipeline.root / "dvc.lock").read_text() == before
    assert pipeline.repro().ran == []
    pipeline.commit("Merge theirs")
    (pipeline.root / "dvc.lock").write_text(before[:100])
    pipeline.git("restore", "dvc.lock")
    assert (pipeline.root / "dvc.lock").read_text() == before


@pytest.mark.slow  # runs of dvc
def test_the_commands_of_the_readme_run_in_their_order(pipeline: Repository) -> None:
    assert RUN_HERE[0] == ". .venv/bin/activate"
    for command in RUN_HERE[1:]:
        pipeline.run(*shlex.split(command), *["ENVIRONMENT="] * command.startswith("make"))
        if command.startswith("dvc exp run"):
            assert pipeline.changed() > {"params.yaml", "dvc.lock", "metrics/train.json", "metrics/evaluate.json"}
        if command.startswith("dvc params"):
            pipeline.commit("Another learning rate")
    assert pipeline.changed() == set()
    assert (pipeline.root / "report.html").exists()


def test_the_diagram_is_that_of_dvc_yaml() -> None:
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```$", README, re.M | re.S)
    texts = dict(re.findall(r"(\w+)[(\[]+([^)\]]+)", diagram))
    arrows = set()
    for line in re.sub(r"[(\[].*?[)\]]+", "", diagram).splitlines()[1:]:
        ends = [[texts.get(box.strip(), box) for box in end.split("&")] for end in line.split("-->")]
        arrows |= {arrow for pair in pairwise(ends) for arrow in product(*pair)}

    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        read = [path for path in stage["deps"] if not path.startswith("stages/")]
        drawn = " ".join(source for source, target in arrows if target == name)
        assert [path for path in read if path not in drawn] == [], name
        assert drawn.count("/") == len(read), name
        written = [
            path
            for key in ("outs", "metrics", "plots")
            for out in stage.get(key, ())
            for path in ([out] if isinstance(out, str) else out)
        ]
        drawn = " ".join(target for source, target in arrows if source == name)
        assert [path for path in written if Path(path).name not in drawn] == [], name


def table(page: str) -> dict[str, list[str]]:
    """The rows of all tables, without the alignment, by the first cell up to a comma."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return {row[0].split(",")[0]: row[1:] for row in rows}


def test_results_are_those_of_the_committed_metrics() -> None:
    rows, of_card = table(README), table(CARD)

    assert rows["training set"][0] == f"{TRAINED['train_loss']:.6f}"
    for name, scalars in (("validation set", EVALUATED["validation"]), ("validation batch", EVALUATED["batch"])):
        interval = f"{scalars['accuracy_low']:.4f} to {scalars['accuracy_high']:.4f}"
        loss, accuracy = f"{scalars['loss']:.6f}", f"{scalars['accuracy']:.4f}"
        assert rows[name] == [loss, accuracy, interval]
        assert of_card[name] == [accuracy, interval, loss]


def test_the_committed_run_stands_in_the_tables_of_experiments() -> None:
    rows = table(EXPERIMENTS)
    scalars = [TRAINED["train_loss"], EVALUATED["batch"]["accuracy"], EVALUATED["validation"]["accuracy"]]

    for name in ("lr", "batch_size"):
        (value,) = re.findall(rf"^  {name}: (\S+)", (ROOT / "params.yaml").read_text().split("train:")[1], re.M)[:1]
        assert rows[value] == [f"{scalar:.4f}" for scalar in scalars]


def test_the_model_card_has_the_spread_of_the_seeds() -> None:
    rows = table(EXPERIMENTS)
    spread = f"{rows['mean'][2]} in the mean with a standard deviation of {rows['standard deviation'][2]}"
    assert spread in " ".join(CARD.split())


def test_the_model_card_has_the_failures_of_each_class() -> None:
    rows = table(CARD)
    predictions = pd.read_csv(ROOT / "plots/predictions.csv")
    for name, predicted in predictions.groupby("actual")["predicted"]:
        incorrect = predicted[predicted != name].value_counts()
        accuracy, taken_for = rows[str(name)]
        assert accuracy == f"{(predicted == name).mean():.3f}"
        assert taken_for.removesuffix(" of 1000)").removesuffix(")") == f"{incorrect.index[0]} ({incorrect.iloc[0]}"


def test_the_table_of_parameters_names_every_key_and_its_range() -> None:
    for section in fields(params.Params):
        for entry in fields(section.type):  # type: ignore[arg-type]
            (line,) = (
                line
                for part in re.findall(rf"^\| `{section.name}` .*?(?=^\| `\w+` \||^$)", EXPERIMENTS, re.M | re.S)
                for line in part.splitlines()
                if f"`{entry.name}`" in line.split("|")[2]
            )
            assert all(f"`{name}`" in line for name in entry.metadata.get("names", ()))
            if "high" in entry.metadata and section.name != "evaluate":
                assert f"to {entry.metadata['high']:g}" in line or f"to {entry.metadata['high']}" in line


def test_the_model_in_three_lines_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images, W, b = rng.integers(0, 256, (3, 32, 32), np.uint8), rng.standard_normal((1024, 10)), np.arange(10.0)
    (tmp_path / "data/resized").mkdir(parents=True)
    np.savez(tmp_path / "data/model.npz", W=W, b=b)
    np.savez(tmp_path / "data/resized/validation.npz", images=images)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", CARD, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - the page's own lines
    names["model"].close()
    names["data"].close()

    assert names["predicted"].tolist() == (images.reshape(3, -1) / 256 @ W + b).argmax(axis=1).tolist()


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("name", PAGES)
def test_lines_outside_of_tables_are_short(name: str) -> None:
    long = [line for line in PAGES[name].splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []
