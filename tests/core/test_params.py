"""Reading params.yaml: what is accepted has exactly its values, what is not is refused in one line that names it."""

import base64
import contextlib
import itertools
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.core.command import UserError
from stages.core.params import load_params
from stages.resize import resize

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
ALL = {"runtime.devices": ", or all"}
"""What a parameter that takes whole numbers takes besides."""
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


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NAMES.items() for value in values])
def test_each_name_on_the_list_is_accepted(load, name, value):
    assert value_of(load(document(name, value)), name) == value


def test_all_devices_are_accepted(load):
    assert load(document("runtime.devices", "all")).runtime.devices == "all"


@pytest.mark.parametrize(("name", "bounds"), (WHOLE | REAL).items())
def test_both_bounds_of_a_range_are_accepted(load, name, bounds):
    for bound in bounds:
        value = value_of(load(document(name, repr(bound))), name)
        assert value == bound
        assert type(value) is type(bound)


@pytest.mark.parametrize("name", REAL)
def test_a_whole_number_is_accepted_for_a_real_one_and_becomes_a_float(load, name):
    assert repr(value_of(load(document(name, "1")), name)) == "1.0"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.lr", "1e-06", 0.000001),
        ("train.lr", "1e-6", 0.000001),
        ("train.lr", ".5", 0.5),
        ("train.lr", "5.", 5.0),
        ("train.lr", "1e3", 1000.0),
        ("train.seed", "0755", 755),
        ("train.seed", "08", 8),
        ("train.seed", "0o17", 15),
        ("train.seed", "0xFFFFFFFF", 2**32 - 1),
        ("train.seed", "+7", 7),
    ],
)
def test_numbers_are_those_of_yaml_1_2(load, name, text, value):
    assert value_of(load(document(name, text)), name) == value


@pytest.mark.parametrize(
    "content",
    [
        DEFAULT.replace("\n", "\r\n"),
        "\ufeff" + DEFAULT,
        "%YAML 1.2\n---\n" + DEFAULT,
        json.dumps(DEFAULTS),
        DEFAULT.replace("tensorflow", "'tensorflow'"),
        DEFAULT.replace("epochs: 10", "epochs: !!int 10"),
    ],
    ids=["CRLF", "byte order mark", "directive", "JSON", "quoted name", "standard tag"],
)
def test_other_spellings_of_the_same_document_are_accepted(load, content):
    assert asdict(load(content)) == DEFAULTS


def test_an_alias_has_the_value_of_its_anchor(load):
    params = load(DEFAULT.replace("height: 32", "height: &side 28").replace("width: 32", "width: *side"))
    assert (params.resize.height, params.resize.width) == (28, 28)


@pytest.mark.parametrize(("batch_size", "last"), [(256, 39), (1, 9999), (3, 3333), (5000, 1), (9999, 1), (10_000, 0)])
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
        ("train.epochs", "1e1", EPOCHS, "10.0"),
        ("train.epochs", "'10'", EPOCHS, "'10'"),
        ("train.epochs", "!!str 10", EPOCHS, "'10'"),
        ("train.epochs", "ten", EPOCHS, "'ten'"),
        ("train.epochs", "", EPOCHS, "nothing"),
        ("train.epochs", "~", EPOCHS, "nothing"),
        ("train.epochs", "[10]", EPOCHS, "a list of 1"),
        ("train.epochs", "{ten: 10, of: 2}", EPOCHS, "a mapping with 2 keys"),
        ("train.epochs", "-1", EPOCHS, "-1"),
        ("train.epochs", "0", EPOCHS, "0"),
        ("train.epochs", "1001", EPOCHS, "1001"),
        ("train.epochs", "9" * 40, EPOCHS, "a number of more than 30 digits"),
        ("train.epochs", "0x" + "F" * 5000, EPOCHS, "a number of more than 30 digits"),
        ("train.epochs", "12:30:00", EPOCHS, "'12:30:00'"),
        ("train.epochs", "2001-01-01", EPOCHS, "2001-01-01"),
        ("train.seed", "-1", "a whole number from 0 to 4294967295", "-1"),
        ("train.seed", "4294967296", "a whole number from 0 to 4294967295", "4294967296"),
        ("train.lr", "0", "a number above 0, at most 1000", "0"),
        ("train.lr", "-0.0", "a number above 0, at most 1000", "-0.0"),
        ("train.lr", "-0.1", "a number above 0, at most 1000", "-0.1"),
        ("train.lr", "1000.0000000000001", "a number above 0, at most 1000", "1000.0000000000001"),
        ("train.lr", ".nan", "a number above 0, at most 1000", "nan"),
        ("train.lr", ".inf", "a number above 0, at most 1000", "inf"),
        ("train.lr", "1e400", "a number above 0, at most 1000", "inf"),
        ("train.lr", "true", "a number above 0, at most 1000", "true"),
        ("train.lr", "'0.1'", "a number above 0, at most 1000", "'0.1'"),
        ("train.lr", "0,1", "a number above 0, at most 1000", "'0,1'"),
        ("train.sigma", "-5e-324", "a number from 0 to 1000", "-5e-324"),
        ("train.sigma", ".NaN", "a number from 0 to 1000", "nan"),
        ("train.sigma", "-.inf", "a number from 0 to 1000", "-inf"),
        ("evaluate.batch_index", "-1", "a whole number from 0 to 9999", "-1"),
        ("runtime.framework", "torch", "one of tensorflow, jax", "'torch'"),
        ("runtime.framework", "TensorFlow", "one of tensorflow, jax", "'TensorFlow'"),
        ("runtime.framework", "", "one of tensorflow, jax", "nothing"),
        ("runtime.devices", "ALL", "a whole number from 1 to 1024, or all", "'ALL'"),
        ("runtime.devices", "1.0", "a whole number from 1 to 1024, or all", "1.0"),
        ("runtime.devices", "true", "a whole number from 1 to 1024, or all", "true"),
        ("runtime.devices", "", "a whole number from 1 to 1024, or all", "nothing"),
        ("runtime.device", "on", "one of auto, cpu, gpu", "'on'"),
        ("runtime.device", "yes", "one of auto, cpu, gpu", "'yes'"),
        ("runtime.device", "true", "one of auto, cpu, gpu", "true"),
        ("runtime.device", "0", "one of auto, cpu, gpu", "0"),
        ("runtime.device", "[cpu]", "one of auto, cpu, gpu", "a list of 1"),
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
        (DEFAULT + "1: {}\n", f"1: unknown key: expected one of {SECTIONS}"),
        (DEFAULT + "~: {}\n", f"nothing: unknown key: expected one of {SECTIONS}"),
        (DEFAULT + '"a\\nb": {}\n', rf"a\nb: unknown key: expected one of {SECTIONS}"),
        (DEFAULT + "k" * 100 + ": {}\n", f"{'k' * 57}...: unknown key: expected one of {SECTIONS}"),
        (DEFAULT.replace("  epochs: 10\n", ""), f"train.epochs: missing key: expected {EPOCHS}"),
        (DEFAULT.replace("  lr: 0.1\n", ""), "train.lr: missing key: expected a number above 0, at most 1000"),
        (
            DEFAULT.replace("  device: auto\n", ""),
            "runtime.device: missing key: expected one of auto, cpu, gpu",
        ),
        (DEFAULT.replace("render:\n  columns: 8\n", ""), "render: missing key: expected a section of this name"),
        (DEFAULT.replace("  columns: 8\n", ""), "render: expected the keys columns, got nothing"),
        (DEFAULT.replace("columns: 8", "- 8"), "render: expected the keys columns, got a list of 1"),
        (
            DEFAULT.replace("  epochs: 10\n", "  epochs: 10\n  epochs: 10\n"),
            'line 11: expected YAML, but found duplicate key "epochs"',
        ),
        (
            DEFAULT.replace("  epochs: 10\n", "  epochs: 10\n  'epochs': 20\n"),
            'line 11: expected YAML, but found duplicate key "epochs"',
        ),
        (DEFAULT + "train: {}\n", 'line 19: expected YAML, but found duplicate key "train"'),
        (
            DEFAULT.replace("resize:", "resize: &r").replace("  columns: 8", "  columns: 8\n  <<: *r"),
            "render.height: unknown key: expected one of columns",
        ),
        ("", f"expected the keys {SECTIONS}, got nothing"),
        ("# nothing\n", f"expected the keys {SECTIONS}, got nothing"),
        ("32\n", f"expected the keys {SECTIONS}, got 32"),
        ("train\n", f"expected the keys {SECTIONS}, got 'train'"),
        ("- train\n", f"expected the keys {SECTIONS}, got a list of 1"),
        (b"\x89PNG\r\n", "expected UTF-8 text, got 0x89 at byte 0"),
        ("# é\n".encode("latin-1"), "expected UTF-8 text, got 0xe9 at byte 2"),
        ("train: {epochs: 10\n", "line 2: expected YAML, but expected ',' or '}', but got '<stream end>'"),
        ("a: b: c\n", "line 1: expected YAML, but mapping values are not allowed here"),
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
        "%YAML 2.0\n---\n" + DEFAULT,
        "'" + DEFAULT,
        b"train:\x00",
        document("train.epochs", "'\a'"),
        document("train.epochs", '"\\U00110000"'),
        document("train.epochs", "[" * 600),
        document("train.epochs", "{a: " * 600),
        document("train.epochs", "!" + "x" * 5000 + " 10"),
        document("train.epochs", "*" + "x" * 5000),
        document("train.epochs", "!a%0Ab 10"),
    ],
    ids=["two documents", "YAML 2", "open quote", "NUL", "bell", "no such character", "deep list", "deep mapping",
         "long tag", "long alias", "line end in a tag"],
)  # fmt: skip
def test_what_is_not_one_yaml_document_is_refused_as_such(refusal, content):
    assert "expected YAML, but " in refusal(content)


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "!!int ten", "!!float ten", "!!bool maybe", "!!timestamp ten", "!!timestamp 2001-99-99",
     "!!binary '*'", "!!set [1]", "!!omap {a: 1}", "!!python/name:os.system", "!!python/object/apply:os.mkdir [made]",
     "!ten 10"],
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


# Any document


def fits(name, value):
    if name in NAMES:
        return isinstance(value, str) and value in NAMES[name]
    if name in REAL:
        return type(value) in (int, float) and REAL[name][0] <= value <= REAL[name][1]
    if name in ALL and value == "all":
        return True
    low, high = WHOLE.get(name, (0, 9999))
    return type(value) is int and low <= value <= high


FITTING = (
    {name: st.sampled_from(values) for name, values in NAMES.items()}
    | {name: st.integers(*bounds) for name, bounds in WHOLE.items()}
    | {"runtime.devices": st.one_of(st.just("all"), st.integers(1, 1024))}
    | {name: st.floats(*bounds) for name, bounds in REAL.items()}
)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-1, 1001),
    st.sampled_from([2**64, -(10**30), 10**4000]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.text(),
    st.binary(max_size=9),
    st.just([]),
    st.just({"a": 1}),
)
UNKNOWN = st.from_regex(r"[a-z_]{1,9}", fullmatch=True).filter(lambda key: f" {key}:" not in DEFAULT)


def as_yaml(value):
    if isinstance(value, bytes):
        return f"!!binary {base64.b64encode(value).decode()}"
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(value)]
    return json.dumps(value)


@st.composite
def documents(draw):
    """A document, most often with few errors or none, its values, and the names of all keys that have one."""
    values = {name: draw(fitting) for name, fitting in FITTING.items()}
    values[BATCH_INDEX] = draw(st.integers(0, 9999 // values["evaluate.batch_size"]))
    for name in draw(st.sets(st.sampled_from(sorted(values)), max_size=2)):
        values[name] = draw(ANYTHING)
    missing = draw(st.sets(st.sampled_from(sorted(values)), max_size=1))
    unknown = {f"{draw(st.sampled_from(sorted(DEFAULTS)))}.{draw(UNKNOWN)}" for _ in range(draw(st.integers(0, 1)))}
    values |= {name: draw(ANYTHING) for name in unknown}

    sections = draw(st.permutations(sorted(DEFAULTS)))
    names = [name for section in sections for name in values if name.startswith(f"{section}.") and name not in missing]
    texts = {name: as_yaml(values[name]) for name in names}
    if draw(st.booleans()):
        first, second = sorted(draw(st.permutations(names))[:2], key=names.index)
        texts |= {first: f"&it {texts[first]}", second: "*it"}
        values[second] = values[first]
    repeated = draw(st.sets(st.sampled_from(names), max_size=1))
    lines = {section: [f"{section}:"] for section in sections}
    for name, text in [*texts.items(), *((name, "1") for name in repeated)]:
        section, key = name.split(".")
        lines[section].append(f"  {key}: {text}")
    added = draw(st.sets(st.sampled_from(["other", *sections]), max_size=1))  # unknown, or repeated
    content = "\n".join([*itertools.chain(*lines.values()), *(f"{section}: {{}}" for section in added)])

    wrong = missing | unknown | repeated | added | {section for section in sections if len(lines[section]) == 1}
    wrong |= {name for name in names if name not in unknown and not fits(name, values[name])}
    if not {BATCH_INDEX, "evaluate.batch_size"} & wrong:
        wrong |= {BATCH_INDEX} if values[BATCH_INDEX] > 9999 // values["evaluate.batch_size"] else set()
    nested = {section: {} for section in sections}
    for name in names:
        section, key = name.split(".")
        nested[section][key] = values[name]
    return content, nested, wrong


@given(documents())
@settings(derandomize=True, max_examples=100, deadline=None)
def test_any_document_is_accepted_with_its_values_or_refused_by_the_name_of_an_error(path, load, refusal, drawn):
    content, nested, wrong = drawn
    if wrong:
        message = refusal(content)
        twice = (f'found duplicate key "{name.rpartition(".")[2]}"' for name in wrong)
        assert message.startswith(tuple(f"{name}: " for name in wrong)) or any(text in message for text in twice)
        with contextlib.chdir(path.parent), pytest.raises(UserError):
            resize(Path("raw"), Path("resized"))
        assert list(path.parent.iterdir()) == [path]
    else:
        params = load(content)
        assert asdict(params) == nested
        assert {type(params.train.lr), type(params.train.sigma)} == {float}


NO_DOCUMENTS = st.one_of(
    st.binary(),
    st.sampled_from([b"", b"\n", b"---\n", b"# nothing", b"%YAML 1.2\n---\n...\n"]),
    st.one_of(st.integers(), st.floats(), st.text(), st.lists(st.integers())).map(
        lambda value: json.dumps(value).encode()
    ),
)


@given(NO_DOCUMENTS)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_what_is_no_mapping_is_refused_as_such(refusal, content):
    assert re.match(r"(line \d+: )?expected (the keys|UTF-8 text|YAML)", refusal(content))


PIECES = [
    *(
        "1",
        "ten",
        "true",
        "~",
        "'",
        '"',
        ": ",
        ", ",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "? ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
    ),
    *(
        "<<: ",
        "|\n",
        ">-\n",
        "# ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "%TAG ! !!\n",
        "\t",
        "\a",
        "\0",
        "\ufeff",
        "\u2028",
    ),
    *(
        "é",
        "\\",
        '"\\ud800"',
        "!",
        "!!",
        "!!bool ",
        "!!int ",
        "!!float ",
        "!!null ",
        "!!str ",
        "!!seq ",
        "!!map ",
        "!!set ",
    ),
    *("!!omap ", "!!pairs ", "!!binary ", "!!timestamp ", "!!merge ", "!!value ", "!!python/tuple "),
]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_any_text_for_a_value_is_accepted_or_refused_in_one_line(load, refusal, text):
    content = document("train.epochs", text)
    try:
        load(content)
    except UserError:
        refusal(content)
