"""The stages as DVC sees them: what they declare, what reruns, what a clone can tell, what the lock proves."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import Repository, Reproduction

from stages.core.way_back import GO_BACK

ROOT = Path(__file__).resolve().parent.parent
DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC_YAML["stages"]
PARAMETERS = yaml.safe_load((ROOT / "params.yaml").read_text())
LOCKS = {  # a list of entries for each: a requirement and its hashes, without the comments
    path.name: re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    for path in sorted(ROOT.glob("requirements*.lock"))
}


def modules(package: str) -> dict[str, ast.Module]:
    """The syntax trees of a package's modules by their names, without the package's own."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT / package).with_suffix("").parts) for path in paths]
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)
    }


MODULES, TOOLS = modules("stages"), modules("tools")
ROOMS = ("core", "model", "runtime")
CALLS = [node for tree in (*MODULES.values(), *TOOLS.values()) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def paths(stage: str, *kinds: str) -> list[str]:
    """The paths in the lists that a stage of dvc.yaml has under ``kinds``; an entry may be a mapping of its path."""
    entries = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def imported(module: str) -> set[str]:
    """The modules of stages/ that one of them imports, anywhere in it, or names in full to have it imported."""
    tree = MODULES[module]
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = {name for name in MODULES if f"stages.{name}" in strings}
    return (in_package("stages", tree) | named) & MODULES.keys() - {"__init__"}


def in_package(package: str, tree: ast.Module) -> set[str]:
    """The names below ``package`` that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}


def closure(module: str) -> set[str]:
    """A module of stages/ and all of them that it needs."""
    found, new = set(), {module}
    while new:
        found |= new
        new = {name for known in new for name in imported(known)} - found
    return found


def sections_read(module: str) -> set[str]:
    """The sections of params.yaml that a module takes from ``load_params()`` or from a name given to its result."""
    nodes = list(ast.walk(MODULES[module]))
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node) == "load_params()"]
    names = {ast.unparse(node.targets[0]) for node in nodes if isinstance(node, ast.Assign) and node.value in calls}
    uses: list[ast.expr] = [
        node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names
    ]
    taken = {node.value: node.attr for node in nodes if isinstance(node, ast.Attribute) and node.value in calls + uses}
    seen = [*taken, *(node.value for node in nodes if isinstance(node, ast.Assign | ast.Expr) and node.value in calls)]
    assert set(calls + uses) == set(seen), f"{module} hands all sections on, so what it reads cannot be seen here"
    return set(taken.values())


def arguments(call: ast.Call) -> dict[str | None, str]:
    """A call's keyword arguments, as written."""
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


# What dvc.yaml declares.


def test_the_modules_that_can_be_run_are_the_stages() -> None:
    runnable = {name for name, tree in MODULES.items() if ast.unparse(tree.body[-1]).startswith("if __name__ == ")}
    assert runnable == STAGES.keys() | {"core.way_back"}  # which make prints after a failure


def test_no_module_imports_a_stage() -> None:
    assert {name: stages for name in MODULES if (stages := imported(name) & STAGES.keys())} == {}


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize(
    ("importer", "allowed"), [("core", {"core"}), ("model", {"core", "model"}), ("runtime", {"core", "runtime"})]
)
def test_a_room_imports_only_itself_and_what_is_below_it(importer: str, allowed: set[str]) -> None:
    rooms = {room(name) for module in MODULES if room(module) == importer for name in imported(module)}
    assert rooms <= allowed


def test_imports_never_go_in_a_circle() -> None:
    assert [name for name in MODULES if any(name in closure(other) for other in imported(name))] == []


def test_tools_import_each_other_only_in_their_own_room_or_from_common_and_stages_import_none() -> None:
    crossing = {
        name: others
        for name, tree in TOOLS.items()
        if (others := {other for other in in_package("tools", tree) if room(other) not in (room(name), "common")})
    }
    assert crossing == {}
    assert {name for name, tree in MODULES.items() if in_package("tools", tree)} == set()


@pytest.mark.parametrize("package", ROOMS)
def test_a_package_itself_is_only_a_docstring(package: str) -> None:
    (docstring,) = MODULES[package].body
    assert ast.unparse(docstring) == repr(ast.get_docstring(MODULES[package], clean=False))


def test_every_module_is_needed_by_a_stage() -> None:
    assert set().union(*map(closure, ("__init__", *STAGES))) | {*ROOMS} == MODULES.keys()


def test_the_interpreter_is_checked_and_settings_of_libraries_are_removed_before_a_stage_imports_anything() -> None:
    assert closure("__init__") == {"__init__", "core", "core.interpreter", "core.startup"}
    for name in ("interpreter", "startup"):
        imports = {
            alias.name
            for node in ast.walk(MODULES[f"core.{name}"])
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert imports <= sys.stdlib_module_names


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_in_an_interpreter_without_the_packages_of_the_lock_is_one_line(tmp_path: Path, stage: str) -> None:
    (tmp_path / "numpy-1.0.dist-info").mkdir()
    interpreter = str(Path(sys.base_prefix, "bin/python3"))
    command = [interpreter, "-S", "-m", f"stages.{stage}"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, "")
    expected = r"stages: expected a Python .*requirements\.lock, found (.*) without (.*): use `make repro`, or .*\n"
    found = re.fullmatch(expected, done.stderr)
    assert found, done.stderr
    assert Path(found[1]).samefile(interpreter)
    names = ["jax", "matplotlib", "numpy", "pandas", "ruamel_yaml", "tensorflow", "tqdm"]
    assert re.findall(r"(\w+)-\S+", found[2]) == names


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_dependencies_of_a_stage_are_its_module_and_the_rooms_from_which_it_imports(stage: str) -> None:
    declared = {path for path in paths(stage, "deps") if path.startswith("stages/")}
    assert declared == {f"stages/{stage}.py"} | {f"stages/{room(name)}" for name in closure(stage) - {stage}}


@pytest.mark.parametrize("stage", STAGES)
def test_the_parameters_of_a_stage_are_the_sections_that_it_reads(stage: str) -> None:
    read = set().union(*map(sections_read, closure(stage)))
    assert sorted(STAGES[stage].get("params", [])) == sorted(read)


def test_the_stages_read_every_section_of_params_yaml_and_no_other() -> None:
    assert {section for stage in STAGES.values() for section in stage.get("params", [])} == PARAMETERS.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_of_a_stage_names_its_data_dependencies_and_then_its_outputs(stage: str) -> None:
    inputs = [path for path in paths(stage, "deps") if not path.startswith("stages/")]
    outputs = paths(stage, "outs", "metrics", "plots")
    words = STAGES[stage]["cmd"].split()
    assert words[:4] == ["exec", "python", "-m", f"stages.{stage}"]
    assert sorted(words[4 : 4 + len(inputs)]) == sorted(inputs)
    assert sorted(words[4 + len(inputs) :]) == sorted(outputs)


@pytest.mark.parametrize("stage", STAGES)
def test_the_paths_on_the_command_line_have_the_names_and_the_order_of_the_arguments(stage: str) -> None:
    (function,) = (node for node in MODULES[stage].body if isinstance(node, ast.FunctionDef) and node.name == stage)
    words = STAGES[stage]["cmd"].split()[4:]
    assert [Path(word).name.replace(".", "_") for word in words] == [argument.arg for argument in function.args.args]


def test_the_model_is_an_artifact() -> None:
    assert DVC_YAML["artifacts"]["softmax-regression"].items() >= {"path": "data/model.npz", "type": "model"}.items()
    assert "data/model.npz" in STAGES["train"]["outs"]


def test_dvc_accepts_dvc_yaml_and_sees_the_stages_in_data_order(pipeline: Repository) -> None:
    assert pipeline.dvc("stage", "list", "--name-only").split() == list(STAGES)


# What reruns. That DVC runs a stage whose dependencies or sections of params.yaml change follows from what it declares.

ALL = "download resize train evaluate render"
CHANGES = {
    "resize.height": (32, 30),
    "resize.width": (32, 28),
    "train.seed": (0, 1),
    "train.epochs": (2, 3),
    "train.batch_size": (256, 128),
    "train.lr": (0.1, 0.05),
    "train.sigma": (0.01, 0.02),
    "evaluate.batch_size": (256, 128),
    "evaluate.batch_index": (0, 1),
    "render.columns": (8, 5),
}
RUNTIME = {"runtime.device": "cpu", "runtime.devices": 3}


def test_the_changes_have_every_parameter() -> None:
    parameters = {f"{section}.{key}" for section, values in PARAMETERS.items() for key in values}
    assert {*CHANGES, *RUNTIME, "runtime.framework"} == parameters


def test_a_comment_in_a_room_reruns_the_stages_that_import_from_it(pipeline: Repository) -> None:
    pipeline.append("stages/model/softmax_jax.py", "# A comment.")
    assert pipeline.repro("--dry").ran == ["train", "evaluate"]


def test_where_the_arithmetic_runs_changes_no_byte_of_any_output(pipeline: Repository) -> None:
    outputs = pipeline.outputs()
    for name, value in RUNTIME.items():
        pipeline.set_parameter(name, value)
    reproduction = pipeline.repro()
    assert (reproduction.ran, reproduction.skipped) == (["train", "evaluate"], ["download", "resize", "render"])
    assert reproduction.output.count("jax on CPU, 3 devices\n") == 2
    assert pipeline.outputs() == outputs
    assert pipeline.changed() == {"params.yaml", "dvc.lock"}
    added = re.findall(r"^\+ +(.*)", pipeline.git("diff", "--unified=0", "dvc.lock"), re.MULTILINE)
    assert added == [f"{name.removeprefix('runtime.')}: {value}" for name, value in RUNTIME.items()] * 2


def test_nothing_reruns_when_nothing_changed_but_what_editors_and_python_leave_beside_code_and_data(
    pipeline: Repository,
) -> None:
    for folder in ("data", "data/raw", "data/resized"):
        for name in ("__pycache__/train.cpython-39.pyc", "train.pyc", ".DS_Store"):
            path = pipeline.root / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no data")
    beside = ("params.py~", "params.py.orig", ".params.py.swp", "#params.py#", "notes.md", "train.pyc", ".DS_Store")
    for folder in (f"stages/{room}" for room in ROOMS):
        for name in (*beside, ".ipynb_checkpoints/params-checkpoint.py", "__pycache__/params.cpython-39.pyc"):
            path = pipeline.root / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no code")
        (pipeline.root / folder / ".#params.py").symlink_to("user@host.1234")  # Emacs's lock leads nowhere
    again = pipeline.repro()
    assert (again.ran, again.cached, again.skipped) == ([], [], list(STAGES))
    assert "Data and pipelines are up to date." in again.output
    assert "dvc.lock" not in pipeline.changed()


# What a clone without data can tell, and the way back.


class Change(NamedTuple):
    """Every stage and parameter changed and committed, a clone of that, and the changes undone."""

    before: dict[str, str]
    there: Reproduction
    after: dict[str, str]
    metrics: dict[str, Any]
    clone: Repository
    back: Reproduction
    left: set[str]


@pytest.fixture(scope="module")
def change(reproduced: Repository, tmp_path_factory: pytest.TempPathFactory) -> Change:
    folder = tmp_path_factory.mktemp("change")
    changed = reproduced.copy(folder / "changed")
    changed.append("stages/download.py", "# Another comment.")
    for name, (_, new) in CHANGES.items():
        changed.set_parameter(name, new)
    there, after = changed.repro(), changed.outputs()
    metrics = json.loads(changed.dvc("metrics", "diff", "--json"))
    changed.commit("Change every stage")
    clone = changed.clone(folder / "clone")
    changed.git("reset", "--quiet", "HEAD~1")
    changed.git("restore", "params.yaml", "stages/download.py")
    back = changed.repro()
    return Change(reproduced.outputs(), there, after, metrics, clone, back, changed.changed())


def test_other_parameters_change_every_output_but_the_data_set(change: Change) -> None:
    assert change.there.ran == ALL.split()
    assert {path for path, md5 in change.after.items() if md5 == change.before[path]} == {"data/raw"}


def test_the_run_cache_restores_every_stage_when_all_changes_are_undone(change: Change) -> None:
    assert (change.back.ran, change.back.cached, change.left) == ([], ALL.split(), set())


def test_metrics_diff_shows_what_a_change_did_to_training_and_to_evaluation(change: Change) -> None:
    assert change.metrics.keys() == {"metrics/train.json", "metrics/evaluate.json"}
    assert change.metrics["metrics/train.json"].keys() == {"train_loss", "validation_loss", "validation_accuracy"}
    assert change.metrics["metrics/evaluate.json"]["batch.examples"] == {"old": 256, "new": 128, "diff": -128}
    assert "validation.examples" not in change.metrics["metrics/evaluate.json"]


def test_a_clone_without_cache_or_remote_shows_the_same_change_of_metrics(change: Change) -> None:
    assert not (change.clone.root / ".dvc" / "cache").exists()
    assert change.clone.dvc("remote", "list") == ""
    assert json.loads(change.clone.dvc("metrics", "diff", "--json", "HEAD~1")) == change.metrics


def test_a_clone_without_cache_or_remote_shows_the_change_of_parameters(change: Change) -> None:
    (shown,) = json.loads(change.clone.dvc("params", "diff", "--json", "HEAD~1")).values()
    assert {name: (entry["old"], entry["new"]) for name, entry in shown.items()} == CHANGES


def test_a_clone_without_cache_or_remote_draws_every_plot_once(change: Change) -> None:
    change.clone.dvc("plots", "diff", "HEAD~1")
    page = (change.clone.root / "dvc_plots" / "index.html").read_text()
    charts = re.findall(r'"title": \{"text": "([^"]+)"', page)
    pictures = re.findall(r'<img src="static/([^"]+)"', page)
    assert sorted(charts) == [
        "Accuracy of each class of the validation set",
        "Confusion matrix of the validation set",
        "Loss",
        "Validation accuracy",
    ]
    assert sorted(pictures) == [
        f"{revision}_plots_{name}.png"
        for revision in ("HEAD~1", "workspace")
        for name in ("confusion", "curves", "errors")
    ]


@pytest.mark.slow  # two runs of dvc
def test_a_run_that_diverges_leaves_the_previous_results_restorable(pipeline: Repository) -> None:
    model = (pipeline.root / "data/model.npz").read_bytes()
    pipeline.set_parameter("train.lr", 1000)
    with pytest.raises(AssertionError, match=r"train: in epoch 1: expected parameters of magnitude up to 513\.5"):
        pipeline.repro()
    assert not (pipeline.root / "data/model.npz").exists()

    for command in GO_BACK.replace("dvc.lock", "dvc.lock params.yaml").split(" && "):  # as the README says
        pipeline.run(*command.split())
    assert (pipeline.root / "data/model.npz").read_bytes() == model
    assert pipeline.changed() == set()
    assert pipeline.repro().ran == []


# What the project takes from others, and what it gives them.


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_nothing_but_exact_versions_with_their_sha256(lock: str) -> None:
    exact = re.compile(r"[a-z0-9-]+==[^ ;]+( ; [^\\]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in LOCKS[lock] if not exact.fullmatch(entry)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_every_dependency_of_pyproject_toml(lock: str) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [pyproject["project"]["dependencies"], *pyproject["dependency-groups"].values()]
    named = {re.split(r"[^\w.-]", requirement)[0] for requirements in lists for requirement in requirements}
    assert named - {entry.split("==")[0] for entry in LOCKS[lock]} == set()


@pytest.mark.parametrize(("extra", "added"), [("gpu", {"jax", "nvidia"}), ("proof", {"jax", "llvmlite", "nvidia"})])
def test_the_lock_of_an_extra_adds_its_packages_and_changes_nothing(extra: str, added: set[str]) -> None:
    common, more = set(LOCKS["requirements.lock"]), set(LOCKS[f"requirements-{extra}.lock"])
    assert common - more == set()
    assert {re.split(r"-|==", entry)[0] for entry in more - common} == added
    assert all(" ; sys_platform == 'linux' " in entry for entry in more - common if not entry.startswith("llvmlite"))


def test_what_is_proved_without_a_gpu_is_what_runs_on_one() -> None:
    gpu, proof = (
        {entry for entry in LOCKS[f"requirements-{extra}.lock"] if re.match("jax|nvidia", entry)}
        for extra in ("gpu", "proof")
    )
    assert proof - gpu == set()


def test_git_tracks_no_data(source: Repository) -> None:
    tracked = source.git("ls-files").splitlines()
    data = [name for name in tracked if re.search(r"^data/|-ubyte|\.(npz|npy|gz|deb|pyc)$", name)]
    assert data == ["data/.gitignore", "data/README.md"]


def test_no_tracked_file_names_a_path_of_a_machine(source: Repository) -> None:
    own = re.compile(rb"/(?:home|root|Users|work)/")
    tracked = source.git("ls-files").splitlines()
    assert [name for name in tracked if own.search((source.root / name).read_bytes())] == []


def test_no_array_is_ever_unpickled() -> None:
    loads = [arguments(call) for call in CALLS if ast.unparse(call.func) in ("np.load", "numpy.load")]
    assert {keywords.get("allow_pickle") for keywords in loads} == {"False"}


def test_yaml_is_only_loaded_safely() -> None:
    of_pyyaml = {name for call in CALLS if re.fullmatch(r"yaml\.\w*load\w*", name := ast.unparse(call.func))}
    of_ruamel = {arguments(call).get("typ") for call in CALLS if ast.unparse(call.func) == "YAML"}
    assert (of_pyyaml, of_ruamel) == ({"yaml.safe_load"}, {"'safe'"})
