"""The stages as DVC sees them: what they declare, what reruns, what a clone can tell, what the lock proves."""

import ast
import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from stages.core.params import YAML12Loader

ROOT = Path(__file__).resolve().parent.parent
DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC_YAML["stages"]
PARAMETERS = yaml.safe_load((ROOT / "params.yaml").read_text())
LOCKS = {  # a list of entries for each: a requirement and its hashes, without the comments
    path.name: re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    for path in sorted(ROOT.glob("requirements*.lock"))
}


def modules(package):
    """The syntax trees of a package's modules by their names, without the package's own."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT / package).with_suffix("").parts) for path in paths]
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)
    }


MODULES, TOOLS = modules("stages"), modules("tools")
ROOMS = ("core", "model", "runtime")
CALLS = [node for tree in (*MODULES.values(), *TOOLS.values()) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def paths(stage, *kinds):
    """The paths in the lists that a stage of dvc.yaml has under ``kinds``; an entry may be a mapping of its path."""
    entries = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def imported(module):
    """The modules of stages/ that one of them imports, anywhere in it, or names in full to have it imported."""
    return in_package("stages", MODULES[module]) & MODULES.keys() - {"__init__"}


def in_package(package, tree):
    """The names below ``package`` that a module imports, anywhere in it, or has in a string of its own."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            case ast.Constant(value=str(name)):
                names.add(name)
    return {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}


def closure(module):
    """A module of stages/ and all of them that it needs."""
    found, new = set(), {module}
    while new:
        found |= new
        new = {name for known in new for name in imported(known)} - found
    return found


def sections_read(module):
    """The sections of params.yaml that a module takes from ``load_params()`` or from a name given to its result."""
    nodes = list(ast.walk(MODULES[module]))
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node) == "load_params()"]
    names = {ast.unparse(node.targets[0]) for node in nodes if isinstance(node, ast.Assign) and node.value in calls}
    uses = [
        node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names
    ]
    taken = {node.value: node.attr for node in nodes if isinstance(node, ast.Attribute) and node.value in calls + uses}
    seen = [*taken, *(node.value for node in nodes if isinstance(node, ast.Assign | ast.Expr) and node.value in calls)]
    assert set(calls + uses) == set(seen), f"{module} hands all sections on, so what it reads cannot be seen here"
    return set(taken.values())


def arguments(call):
    """A call's keyword arguments, as written."""
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


# What dvc.yaml declares.


def test_the_modules_that_can_be_run_are_the_stages():
    runnable = {name for name, tree in MODULES.items() if ast.unparse(tree.body[-1]).startswith("if __name__ == ")}
    assert runnable == STAGES.keys()


def test_no_module_imports_a_stage():
    assert {name: stages for name in MODULES if (stages := imported(name) & STAGES.keys())} == {}


def room(module):
    return module.partition(".")[0]


@pytest.mark.parametrize(
    ("importer", "allowed"), [("core", {"core"}), ("model", {"core", "model"}), ("runtime", {"core", "runtime"})]
)
def test_a_room_imports_only_itself_and_what_is_below_it(importer, allowed):
    rooms = {room(name) for module in MODULES if room(module) == importer for name in imported(module)}
    assert rooms <= allowed


def test_imports_never_go_in_a_circle():
    assert [name for name in MODULES if any(name in closure(other) for other in imported(name))] == []


def test_tools_import_each_other_only_in_their_own_room_or_from_common_and_stages_import_none():
    crossing = {
        name: others
        for name, tree in TOOLS.items()
        if (others := {other for other in in_package("tools", tree) if room(other) not in (room(name), "common")})
    }
    assert crossing == {}
    assert {name for name, tree in MODULES.items() if in_package("tools", tree)} == set()


@pytest.mark.parametrize("package", ["__init__", *ROOMS])
def test_a_package_itself_is_only_a_docstring(package):
    (docstring,) = MODULES[package].body
    assert ast.unparse(docstring) == repr(ast.get_docstring(MODULES[package], clean=False))


def test_every_module_is_needed_by_a_stage():
    assert set().union(*map(closure, STAGES)) | {"__init__", *ROOMS} == MODULES.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_dependencies_of_a_stage_are_its_module_and_the_rooms_from_which_it_imports(stage):
    declared = {path for path in paths(stage, "deps") if path.startswith("stages/")}
    assert declared == {f"stages/{stage}.py"} | {f"stages/{room(name)}" for name in closure(stage) - {stage}}


@pytest.mark.parametrize("stage", STAGES)
def test_the_parameters_of_a_stage_are_the_sections_that_it_reads(stage):
    read = set().union(*map(sections_read, closure(stage)))
    assert sorted(STAGES[stage].get("params", [])) == sorted(read)


def test_the_stages_read_every_section_of_params_yaml_and_no_other():
    assert {section for stage in STAGES.values() for section in stage.get("params", [])} == PARAMETERS.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_of_a_stage_names_its_data_dependencies_and_then_its_outputs(stage):
    inputs = [path for path in paths(stage, "deps") if not path.startswith("stages/")]
    outputs = paths(stage, "outs", "metrics", "plots")
    words = STAGES[stage]["cmd"].split()
    assert words[:4] == ["exec", "python", "-m", f"stages.{stage}"]
    assert sorted(words[4 : 4 + len(inputs)]) == sorted(inputs)
    assert sorted(words[4 + len(inputs) :]) == sorted(outputs)


@pytest.mark.parametrize("stage", STAGES)
def test_the_paths_on_the_command_line_have_the_names_and_the_order_of_the_arguments(stage):
    (function,) = (node for node in MODULES[stage].body if isinstance(node, ast.FunctionDef) and node.name == stage)
    words = STAGES[stage]["cmd"].split()[4:]
    assert [Path(word).name.replace(".", "_") for word in words] == [argument.arg for argument in function.args.args]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_does(stage):
    assert re.fullmatch(r"[A-Z].+[^.]", STAGES[stage]["desc"])


def test_the_model_is_an_artifact():
    assert DVC_YAML["artifacts"]["softmax-regression"].items() >= {"path": "data/model.npz", "type": "model"}.items()
    assert "data/model.npz" in STAGES["train"]["outs"]


def test_dvc_accepts_dvc_yaml_and_sees_the_stages_in_data_order(pipeline):
    assert pipeline.dvc("stage", "list", "--name-only").split() == list(STAGES)


# What reruns.

ALL = "download resize train evaluate render"
AFTER_A_COMMENT = [
    ("__init__", ""),
    ("core/command", ALL),
    ("model/softmax_jax", "train evaluate"),
    ("runtime/devices", "train evaluate"),
    *((stage, stage) for stage in STAGES),
]
AFTER_ANOTHER_RUNTIME = [  # which changes no result
    ("runtime.framework", "tensorflow", "train evaluate"),
    ("runtime.device", "cpu", "train evaluate"),
    ("runtime.devices", 3, "train evaluate"),
]
AFTER_ANOTHER_VALUE = [  # of a parameter that changes results, so that what depends on them runs too
    ("resize.height", 31, "resize train evaluate render"),
    ("resize.width", 31, "resize train evaluate render"),
    ("train.seed", 1, "train evaluate render"),
    ("train.epochs", 3, "train evaluate render"),
    ("train.batch_size", 128, "train evaluate render"),
    ("train.lr", 0.2, "train evaluate render"),
    ("train.sigma", 0.02, "train evaluate render"),
    ("evaluate.batch_size", 128, "evaluate render"),
    ("evaluate.batch_index", 1, "evaluate render"),
    ("render.columns", 4, "render"),
]


def assert_undoing_takes_from_the_run_cache(pipeline, path, stages):
    pipeline.git("restore", path)
    undone = pipeline.repro()
    assert (undone.ran, undone.cached) == ([], stages.split())
    assert pipeline.changed() == set()


def test_the_tables_have_every_parameter():
    parameters = [f"{section}.{key}" for section, values in PARAMETERS.items() for key in values]
    assert [name for name, *_ in AFTER_ANOTHER_RUNTIME + AFTER_ANOTHER_VALUE] == parameters


# Dry runs tell which: they differ from real ones only where outputs change, and comments change none, as the next test
# shows for all modules at once.
@pytest.mark.parametrize(("module", "stages"), AFTER_A_COMMENT)
def test_a_comment_reruns_the_stages_that_import_the_module(pipeline, module, stages):
    pipeline.append(f"stages/{module}.py", "# A comment.")
    assert pipeline.repro("--dry").ran == stages.split()


def test_comments_change_no_output(pipeline):
    outputs = pipeline.outputs()
    edited = {str(path.relative_to(pipeline.root)) for path in (pipeline.root / "stages").rglob("*.py")}
    for path in edited:
        pipeline.append(path, "# A comment.")
    assert pipeline.repro().ran == ALL.split()
    assert pipeline.outputs() == outputs
    assert pipeline.changed() == edited | {"dvc.lock"}
    assert_undoing_takes_from_the_run_cache(pipeline, "stages", ALL)


@pytest.mark.parametrize(("name", "value", "stages"), AFTER_ANOTHER_VALUE)
def test_a_parameter_reruns_the_stages_that_read_it_and_those_whose_inputs_change(pipeline, name, value, stages):
    pipeline.set_parameter(name, value)
    assert pipeline.repro().ran == stages.split()  # restoring is tested below, with all of them at once


@pytest.mark.parametrize(("name", "value", "stages"), AFTER_ANOTHER_RUNTIME)
def test_where_the_arithmetic_runs_changes_no_byte_of_any_output(pipeline, name, value, stages):
    outputs = pipeline.outputs()
    pipeline.set_parameter(name, value)
    reproduction = pipeline.repro()
    assert (reproduction.ran, reproduction.skipped) == (stages.split(), ["download", "resize", "render"])
    assert pipeline.outputs() == outputs
    assert pipeline.changed() == {"params.yaml", "dvc.lock"}
    added = re.findall(r"^\+ +(.*)", pipeline.git("diff", "--unified=0", "dvc.lock"), re.MULTILINE)
    assert added == [f"{name.removeprefix('runtime.')}: {value}"] * len(stages.split())
    assert_undoing_takes_from_the_run_cache(pipeline, "params.yaml", stages)


def test_nothing_reruns_when_nothing_changed(pipeline):
    again = pipeline.repro()
    assert (again.ran, again.cached, again.skipped) == ([], [], list(STAGES))
    assert "Data and pipelines are up to date." in again.output


def test_what_editors_and_python_leave_beside_code_and_data_reruns_nothing(pipeline):
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
    assert "dvc.lock" not in pipeline.changed()


# What a clone without data can tell, and the way back.

CHANGES = {"resize.height": (32, 30), "train.lr": (0.1, 0.05), "evaluate.batch_index": (0, 1), "render.columns": (8, 5)}


@pytest.fixture(scope="module")
def change(reproduced, tmp_path_factory):
    """Every stage changed and committed, a clone of that, and the changes undone."""
    folder = tmp_path_factory.mktemp("change")
    changed = reproduced.copy(folder / "changed")
    changed.append("stages/download.py", "# Another comment.")
    for name, (_, new) in CHANGES.items():
        changed.set_parameter(name, new)
    there = changed.repro()
    metrics = json.loads(changed.dvc("metrics", "diff", "--json"))
    changed.commit("Change every stage")
    clone = changed.clone(folder / "clone")
    changed.git("reset", "--quiet", "HEAD~1")
    changed.git("restore", "params.yaml", "stages/download.py")
    back = changed.repro()
    return SimpleNamespace(there=there, metrics=metrics, clone=clone, back=back, left=changed.changed())


def test_the_run_cache_restores_every_stage_when_all_changes_are_undone(change):
    assert change.there.ran == ALL.split()
    assert (change.back.ran, change.back.cached, change.left) == ([], ALL.split(), set())


def test_metrics_diff_shows_what_a_change_did_to_training_and_to_evaluation(change):
    assert change.metrics.keys() == {"metrics/train.json", "metrics/evaluate.json"}
    assert change.metrics["metrics/train.json"].keys() == {"train_loss", "validation_loss", "validation_accuracy"}
    assert change.metrics["metrics/evaluate.json"]["batch.examples"] == {"old": 256, "new": 44, "diff": -212}
    assert "validation.examples" not in change.metrics["metrics/evaluate.json"]


def test_a_clone_without_cache_or_remote_shows_the_same_change_of_metrics(change):
    assert not (change.clone.root / ".dvc" / "cache").exists()
    assert change.clone.dvc("remote", "list") == ""
    assert json.loads(change.clone.dvc("metrics", "diff", "--json", "HEAD~1")) == change.metrics


def test_a_clone_without_cache_or_remote_shows_the_change_of_parameters(change):
    (shown,) = json.loads(change.clone.dvc("params", "diff", "--json", "HEAD~1")).values()
    assert {name: (entry["old"], entry["new"]) for name, entry in shown.items()} == CHANGES


def test_a_clone_without_cache_or_remote_draws_every_plot_once(change):
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


def test_a_run_that_diverges_leaves_the_previous_results_restorable(pipeline):
    model = (pipeline.root / "data/model.npz").read_bytes()
    pipeline.set_parameter("train.lr", 1000)
    with pytest.raises(AssertionError, match=r"train: in epoch 1: expected parameters of magnitude up to 513\.5"):
        pipeline.repro()
    assert not (pipeline.root / "data/model.npz").exists()

    pipeline.git("restore", "metrics", "plots", "dvc.lock", "params.yaml")  # as the README says
    pipeline.dvc("checkout", "--force")
    assert (pipeline.root / "data/model.npz").read_bytes() == model
    assert pipeline.changed() == set()
    assert pipeline.repro().ran == []


# What the project takes from others, and what it gives them.


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_nothing_but_exact_versions_with_their_sha256(lock):
    exact = re.compile(r"[a-z0-9-]+==[^ ;]+( ; [^\\]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in LOCKS[lock] if not exact.fullmatch(entry)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address(lock):
    assert "://" not in (ROOT / lock).read_text()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_every_dependency_of_pyproject_toml(lock):
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [pyproject["project"]["dependencies"], *pyproject["dependency-groups"].values()]
    named = {re.match(r"[\w.-]+", requirement)[0] for requirements in lists for requirement in requirements}
    assert named - {entry.split("==")[0] for entry in LOCKS[lock]} == set()


def test_the_lock_for_gpus_adds_nvidias_libraries_and_changes_nothing():
    common, gpu = set(LOCKS["requirements.lock"]), set(LOCKS["requirements-gpu.lock"])
    assert common - gpu == set()
    assert {re.split(r"-|==", entry)[0] for entry in gpu - common} == {"jax", "nvidia"}
    assert all(" ; sys_platform == 'linux' " in entry for entry in gpu - common)


def test_git_tracks_no_data(source):
    tracked = source.git("ls-files").splitlines()
    assert [name for name in tracked if re.search(r"^data/|-ubyte|\.(npz|npy|gz|deb|pyc)$", name)] == []


def test_no_tracked_file_names_a_path_of_a_machine(source):
    own = re.compile(rb"/(?:home|root|Users|work)/")
    tracked = source.git("ls-files").splitlines()
    assert [name for name in tracked if own.search((source.root / name).read_bytes())] == []


def test_no_array_is_ever_unpickled():
    loads = [arguments(call) for call in CALLS if ast.unparse(call.func) in ("np.load", "numpy.load")]
    assert {keywords.get("allow_pickle") for keywords in loads} == {"False"}


def test_yaml_is_only_loaded_safely():
    calls = {(ast.unparse(call.func), arguments(call).get("Loader")) for call in CALLS}
    loads = {(function, loader) for function, loader in calls if re.fullmatch(r"yaml\.\w*load\w*", function)}
    assert loads - {("yaml.safe_load", None)} == {("yaml.load", "YAML12Loader")}
    assert issubclass(YAML12Loader, yaml.SafeLoader)


def test_no_command_goes_through_a_shell():
    assert {arguments(call).get("shell", "False") for call in CALLS} == {"False"}
    assert {ast.unparse(call.func) for call in CALLS} & {"os.system", "os.popen", "subprocess.getoutput"} == set()
