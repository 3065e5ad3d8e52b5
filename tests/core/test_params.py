"""Reading params.yaml: what is accepted has exactly its values, what is not is refused in one line that names it."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.core.command import UserError
from stages.core.params import load_params

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
SECTIONS = "runtime, resize, train, evaluate, render"
DEFAULTS = {
    "runtime": {"framework": "tensorflow", "device": "auto", "devices": 1},
    "resize": {"height": 32, "width": 32},
    "train": {"seed": 0, "epochs": 10, "batch_size": 256, "lr": 0.1, "sigma": 0.01},
    "evaluate": {"batch_size": 256, "batch_index": 0},
    "render": {"columns": 8},
}
NAMES = {"runtime.framework": ("tensorflow", "jax"), "runtime.device": ("auto", "cpu", "gpu")}
WHOLE = {
    "runtime.devices": (1, 1024),
    "resize.height": (1, 128),
    "resize.width": (1, 128),
    "train.seed": (0, 2**32 - 1),
    "train.epochs": (1, 1000),
    "train.batch_size": (1, 60_000),
    "evaluate.batch_size": (1, 10_000),
    "render.columns": (1, 32),
}
ALL = {"runtime.devices": ", or all"}  # what a parameter that takes whole numbers takes besides
REAL = {"train.lr": (5e-324, 1000.0), "train.sigma": (0.0, 1000.0)}
BATCH_INDEX = "evaluate.batch_index"
EPOCHS = "a whole number from 1 to 1000"


def document(name="", text=""):
    """The defaults as YAML, one line per key, with ``text`` as the value of the key ``name``."""
    lines = []
    for section, keys in DEFAULTS.items():
        lines.append(f"{section}:")
        lines += [f"  {key}: {text if name == f'{section}.{key}' else value}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


DEFAULT = document()


def value_of(params, name):
    section, key = name.split(".")
    return getattr(getattr(params, section), key)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("params") / "params.yaml"


@pytest.fixture(scope="module")
def load(path):
    def load(content):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_params(path)

    return load


@pytest.fixture(scope="module")
def refusal(path, load):
    """What is said of a document after the name of the file: always one short line without a doubled word."""

    def refusal(content):
        with pytest.raises(UserError) as caught:
            load(content)
        named, message = str(caught.value)[: len(f"{path}: ")], str(caught.value)[len(f"{path}: ") :]
        assert named == f"{path}: "
        assert message.isprintable()
        assert len(message) <= 200
        assert not re.search(r"\b(\w+) \1\b", message)
        return message

    return refusal


# What is accepted


def test_the_file_of_the_repository_is_read_as_dvc_reads_it():
    assert asdict(load_params(PARAMS)) == YAML(typ="safe").load(PARAMS)


def test_every_value_arrives_unchanged_and_with_its_type(load):
    params = asdict(load(DEFAULT))
    assert params == DEFAULTS
    assert all(
        type(params[section][key]) is type(value) for section in DEFAULTS for key, value in DEFAULTS[section].items()
    )


@pytest.mark.parametrize(("name", "values"), [*(NAMES | WHOLE | REAL).items(), ("runtime.devices", ("all",))])
def test_each_name_and_both_bounds_of_a_range_are_accepted(load, name, values):
    for value in values:
        found = value_of(load(document(name, value)), name)
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.lr", "1e-6", 0.000001),
        ("train.lr", "1", 1.0),
        ("train.seed", "0755", 755),
        ("train.seed", "0o17", 15),
        ("train.seed", "0xFFFFFFFF", 2**32 - 1),
    ],
)
def test_numbers_are_those_of_yaml_1_2(load, name, text, value):
    assert repr(value_of(load(document(name, text)), name)) == repr(value)


@pytest.mark.parametrize(
    "content", [DEFAULT.replace("\n", "\r\n"), "\ufeff" + DEFAULT], ids=["CRLF", "byte order mark"]
)
def test_files_of_windows_editors_are_accepted(load, content):
    assert asdict(load(content)) == DEFAULTS


@pytest.mark.parametrize(("batch_size", "last"), [(256, 39), (1, 9999), (5000, 1), (10_000, 0)])
def test_the_last_batch_is_accepted_and_the_next_refused(load, refusal, batch_size, last):
    sized = document(BATCH_INDEX, "{}").replace(
        "evaluate:\n  batch_size: 256", f"evaluate:\n  batch_size: {batch_size}"
    )
    assert load(sized.format(last)).evaluate.batch_index == last
    assert re.fullmatch(
        rf"evaluate\.batch_index: expected a whole number from 0 to {last}"
        rf"( \(10000 examples, batches of {batch_size}\))?, got {last + 1}",
        refusal(sized.format(last + 1)),
    )


# What is refused


@pytest.mark.parametrize(
    ("name", "text", "expected", "found"),
    [
        ("train.epochs", "true", EPOCHS, "true"),
        ("train.epochs", "10.0", EPOCHS, "10.0"),
        ("train.epochs", "'10'", EPOCHS, "'10'"),
        ("train.epochs", "", EPOCHS, "nothing"),
        ("train.epochs", "[10]", EPOCHS, "a list of 1"),
        ("train.epochs", "{ten: 10, of: 2}", EPOCHS, "a mapping with 2 keys"),
        ("train.epochs", "9" * 40, EPOCHS, "a number of more than 30 digits"),
        ("train.epochs", "2001-01-01", EPOCHS, "2001-01-01"),
        ("train.lr", "0", "a number above 0, at most 1000", "0"),
        ("train.lr", "-0.0", "a number above 0, at most 1000", "-0.0"),
        ("train.lr", "1000.0000000000001", "a number above 0, at most 1000", "1000.0000000000001"),
        ("train.lr", ".nan", "a number above 0, at most 1000", "nan"),
        ("train.lr", "1e400", "a number above 0, at most 1000", "inf"),
        ("train.lr", "0,1", "a number above 0, at most 1000", "'0,1'"),
        ("train.sigma", "-5e-324", "a number from 0 to 1000", "-5e-324"),
        ("evaluate.batch_index", "-1", "a whole number from 0 to 9999", "-1"),
        ("runtime.framework", "torch", "one of tensorflow, jax", "'torch'"),
        ("runtime.devices", "ALL", "a whole number from 1 to 1024, or all", "'ALL'"),
        ("runtime.device", "on", "one of auto, cpu, gpu", "'on'"),
        ("runtime.device", "|\n    cpu\n    gpu", "one of auto, cpu, gpu", r"'cpu\ngpu\n'"),
        ("runtime.device", '"\\a\\u2028\\ud800"', "one of auto, cpu, gpu", r"'\x07\u2028\ud800'"),
        ("runtime.device", "c" * 10_000, "one of auto, cpu, gpu", "'" + "c" * 56 + "..."),
        ("runtime.device", "!!binary aGk=", "one of auto, cpu, gpu", "b'hi'"),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_key_what_is_expected_and_what_was_found(refusal, name, text, expected, found):
    assert refusal(document(name, text)) == f"{name}: expected {expected}, got {found}"


@pytest.mark.parametrize(("name", "bounds"), WHOLE.items())
def test_a_whole_number_beyond_either_bound_is_refused(refusal, name, bounds):
    low, high = bounds
    for value in (low - 1, high + 1):
        assert (
            refusal(document(name, value))
            == f"{name}: expected a whole number from {low} to {high}{ALL.get(name, '')}, got {value}"
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEFAULT.replace("epochs", "epoch"), "train.epoch: unknown key: did you mean train.epochs?"),
        (DEFAULT.replace("train:", "trian:"), "trian: unknown key: did you mean train?"),
        (
            DEFAULT.replace("epochs", "momentum"),
            "train.momentum: unknown key: expected one of seed, epochs, batch_size, lr, sigma",
        ),
        (DEFAULT + "bench: {}\n", f"bench: unknown key: expected one of {SECTIONS}"),
        (DEFAULT + "~: {}\n", f"nothing: unknown key: expected one of {SECTIONS}"),
        (DEFAULT + "k" * 100 + ": {}\n", f"{'k' * 57}...: unknown key: expected one of {SECTIONS}"),
        (DEFAULT.replace("  epochs: 10\n", ""), f"train.epochs: missing key: expected {EPOCHS}"),
        (DEFAULT.replace("render:\n  columns: 8\n", ""), "render: missing key: expected a section of this name"),
        (DEFAULT.replace("  columns: 8\n", ""), "render: expected the keys columns, got nothing"),
        (
            DEFAULT.replace("  epochs: 10\n", "  epochs: 10\n  epochs: 10\n"),
            'line 11: expected YAML, but found duplicate key "epochs"',
        ),
        (
            DEFAULT.replace("resize:", "resize: &r").replace("  columns: 8", "  columns: 8\n  <<: *r"),
            "render.height: unknown key: expected one of columns",
        ),
        ("", f"expected the keys {SECTIONS}, got nothing"),
        ("- train\n", f"expected the keys {SECTIONS}, got a list of 1"),
        (b"\x89PNG\r\n", "expected UTF-8 text, got 0x89 at byte 0"),
        ("train: {epochs: 10\n", "line 2: expected YAML, but expected ',' or '}', but got '<stream end>'"),
        (document("train.epochs", "*ten"), "line 10: expected YAML, but found undefined alias 'ten'"),
        (document("train.epochs", "&a [*a]"), f"train.epochs: expected {EPOCHS}, got a list of 1"),
    ],
    ids=lambda content: repr(content)[-40:],
)  # fmt: skip
def test_an_error_of_the_document_is_named(refusal, content, message):
    assert refusal(content) == message


@pytest.mark.parametrize(
    "content",
    [
        DEFAULT + "---\n" + DEFAULT,
        b"train:\x00",
        document("train.epochs", "[" * 600),
        document("train.epochs", "!" + "x" * 5000 + " 10"),
        document("train.epochs", "!a%0Ab 10"),
    ],
    ids=["two documents", "NUL", "deep list", "long tag", "line end in a tag"],
)
def test_what_is_not_one_yaml_document_is_refused_as_such(refusal, content):
    assert "expected YAML, but " in refusal(content)


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "!!int ten", "!!timestamp 2001-99-99", "!!binary '*'", "!!python/object/apply:os.mkdir [made]"],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_value_that_cannot_be_built_is_refused_with_its_line_or_key(refusal, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.match(
        r"(line 10: |)expected YAML, but |train\.epochs: expected ", refusal(document("train.epochs", text))
    )
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match=r"/params\.yaml: expected a file, found none: run from the top of the repository$"
    ):
        load_params(tmp_path / "params.yaml")


PIECES = [
    *("1~'\",[]{}!#\t\a\0\ufeff\u2028\\"),
    *("ten", ": ", "\n", "\n    ", "- ", "? ", "&a ", "*a ", "<<: ", "|\n", "---\n", "%YAML 1.2\n", '"\\ud800"'),
    *("!!bool ", "!!int ", "!!float ", "!!set ", "!!omap ", "!!binary ", "!!timestamp ", "!!python/tuple "),
]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_text_for_a_value_is_accepted_or_refused_in_one_line(load, refusal, text):
    content = document("train.epochs", text)
    try:
        load(content)
    except UserError:
        refusal(content)
