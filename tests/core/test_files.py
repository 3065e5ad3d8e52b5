"""The files that stages exchange: bytes that follow from the content alone, contracts, and atomic writing."""

import errno
import io
import itertools
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest

from stages.core import files
from stages.core.command import UserError
from stages.core.files import csv_bytes, json_bytes, npz_bytes, publish, read_npz

IMAGES = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([9, 0, 1], np.uint8)
CONTRACT = {"images": ("uint8", (None, 2, 2)), "labels": ("uint8", (None,))}
GOOD = npz_bytes(images=IMAGES, labels=LABELS)


# Encoders


def test_npz_bytes_are_those_of_the_zip_format_and_leave_nothing_to_python_s_version():
    contents = {}
    for name, array in {"a": np.arange(3, dtype=np.uint8), "b": np.zeros((2, 2))}.items():
        np.save(file := io.BytesIO(), array)
        contents[f"{name}.npy".encode()] = file.getvalue()
    # APPNOTE.TXT of the ZIP format, sections 4.3.7, 4.3.12 and 4.3.16: version 2.0, stored, 1 January 1980, Unix.
    members, directory = b"", b""
    for name, content in contents.items():
        common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0x21, zlib.crc32(content), *[len(content)] * 2, len(name), 0)
        place = struct.pack("<HHHII", 0, 0, 0, 0o600 << 16, len(members))
        directory += b"PK\x01\x02" + struct.pack("<BB", 20, 3) + common + place + name
        members += b"PK\x03\x04" + common + name + content
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2, 2, len(directory), len(members), 0)

    assert npz_bytes(a=np.arange(3, dtype=np.uint8), b=np.zeros((2, 2))) == members + directory + end


def test_json_has_sorted_keys_six_decimals_and_lf_line_ends():
    metrics = {
        "validation": {"loss": 0.51315249, "accuracy": np.float64(0.8217)},
        "batch": {"size": 256, "whole": True},
    }
    assert json_bytes(metrics) == (
        b'{\n  "batch": {\n    "size": 256,\n    "whole": true\n  },\n'
        b'  "validation": {\n    "accuracy": 0.8217,\n    "loss": 0.513152\n  }\n}\n'
    )


@pytest.mark.parametrize("number", [float("inf"), np.float64("nan")])
def test_a_number_that_json_does_not_have_is_refused(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"validation": {"loss": number}})


def test_csv_has_six_decimals_for_floats_only_quotes_where_needed_and_lf_line_ends():
    rows = [("ankle boot", 0.1, 3), ("a,b", np.float64(1) / 3, -1), ('"', 12345678.0, True)]
    assert csv_bytes(["class", "accuracy", "n"], rows) == (
        b'class,accuracy,n\nankle boot,0.100000,3\n"a,b",0.333333,-1\n"""",12345678.000000,True\n'
    )


# Reading


@pytest.fixture
def refusal(tmp_path):
    """What is said of the content of a file after its name: always one line that says how to fix it."""

    def refusal(content):
        path = tmp_path / "data.npz"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_npz(path, **CONTRACT)
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith(f"{path}: expected ")
        assert message.endswith(": run `dvc repro` to make it again")
        return message.removeprefix(f"{path}: ").removesuffix(": run `dvc repro` to make it again")

    return refusal


def test_arrays_come_back_equal_in_the_order_of_the_contract(tmp_path):
    (tmp_path / "data.npz").write_bytes(npz_bytes(labels=LABELS, images=IMAGES))
    images, labels = read_npz(tmp_path / "data.npz", **CONTRACT)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_an_open_dimension_may_be_empty(tmp_path):
    (tmp_path / "data.npz").write_bytes(npz_bytes(images=IMAGES[:0], labels=LABELS[:0]))
    images, labels = read_npz(tmp_path / "data.npz", **CONTRACT)
    assert (images.shape, labels.shape) == ((0, 2, 2), (0,))


def test_a_missing_file_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"data\.npz: expected a file, found none: run `dvc repro` to make it again$"):
        read_npz(tmp_path / "data.npz", **CONTRACT)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected the arrays ['images', 'labels'], found ['images']"),
        (
            {"images": IMAGES, "labels": LABELS, "W": LABELS},
            "expected the arrays ['images', 'labels'], found ['W', 'images', 'labels']",
        ),
        (
            {"images": IMAGES.astype(float), "labels": LABELS},
            "expected images uint8 (n, 2, 2), found float64 (3, 2, 2)",
        ),
        (
            {"images": IMAGES[:, :, :1], "labels": LABELS},
            "expected images uint8 (n, 2, 2), found uint8 (3, 2, 1)",
        ),
        ({"images": IMAGES[0], "labels": LABELS}, "expected images uint8 (n, 2, 2), found uint8 (2, 2)"),
        ({"images": IMAGES, "labels": np.uint8(1)}, "expected labels uint8 (n,), found uint8 ()"),
    ],
    ids=lambda arrays: "",
)  # fmt: skip
def test_a_broken_contract_is_refused_with_what_is_expected_and_what_was_found(refusal, arrays, message):
    assert refusal(npz_bytes(**arrays)) == message


def zipped(**members):
    """Encode a zip archive with the given members, whatever they hold."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(f"{name}.npy", member)
    return content.getvalue()


def npy(array):
    """Encode one array as .npy."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>",
        GOOD[: len(GOOD) // 2],
        npy(IMAGES),
        zipped(images=npy(IMAGES), labels=npy(LABELS).replace(b"'descr'", b"\n'desc'")),
        zipped(images=npy(IMAGES), labels=npy(np.zeros(1, [(f"{i:0100}", "u1") for i in range(150)]))),
    ],
    ids=["empty", "HTML", "half", "one array", "header damaged", "header of many lines"],
)
def test_damage_is_refused_as_such(refusal, content):
    assert refusal(content).startswith("expected an .npz archive, found damage (")


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(GOOD)
    with path.open("r+b", buffering=0) as file:
        for place, bit in itertools.product(range(len(GOOD)), range(8)):
            os.pwrite(file.fileno(), bytes([GOOD[place] ^ 1 << bit]), place)
            try:
                images, labels = read_npz(path, **CONTRACT)
            except UserError:
                pass
            else:
                assert (images.tobytes(), labels.tobytes()) == (IMAGES.tobytes(), LABELS.tobytes())
            os.pwrite(file.fileno(), GOOD[place : place + 1], place)


class Trap:
    """An object whose unpickling makes a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_array_of_objects_is_refused_and_never_unpickled(refusal, tmp_path):
    np.savez(file := io.BytesIO(), images=IMAGES, labels=np.array([Trap(tmp_path / "sprung")], object))
    content = file.getvalue()
    assert "allow_pickle=False" in refusal(content)
    assert not (tmp_path / "sprung").exists()
    np.load(io.BytesIO(content), allow_pickle=True)["labels"]
    assert (tmp_path / "sprung").exists()


# Writing


def tree(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_all_contents_are_written_and_missing_directories_made(tmp_path):
    (tmp_path / "old").write_bytes(b"a longer content than the new one")
    publish({tmp_path / "old": b"new", tmp_path / "data" / "raw" / "empty": b""})
    assert tree(tmp_path) == {"old": b"new", "data/raw/empty": b""}


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_the_second_file_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch, failure):
    (tmp_path / "first").write_bytes(b"old")
    (tmp_path / "second").write_bytes(b"old")
    outcomes = iter([None, failure])

    def fsync(descriptor):
        if outcome := next(outcomes):
            raise outcome

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(type(failure)):
        publish({tmp_path / "first": b"new", tmp_path / "second": b"new", tmp_path / "third": b"new"})
    assert tree(tmp_path) == {"first": b"old", "second": b"old"}


def test_a_directory_that_cannot_be_made_leaves_the_old_files_and_nothing_else(tmp_path):
    (tmp_path / "first").write_bytes(b"old")
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(OSError, match="file"):
        publish({tmp_path / "first": b"new", tmp_path / "file" / "second": b"new"})
    assert tree(tmp_path) == {"first": b"old", "file": b"in the way"}


def test_no_file_gets_its_name_before_all_are_on_disk(tmp_path, monkeypatch):
    (tmp_path / "first").write_bytes(b"old")
    seen = []
    monkeypatch.setattr(
        files.os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, tree(tmp_path)))
    )
    publish({tmp_path / "first": b"new", tmp_path / "second": b"newer"})
    assert [size for size, _ in seen] == [3, 5]
    assert [{name for name in names if not name.endswith(".tmp")} for _, names in seen] == [{"first"}, {"first"}]
    assert [names["first"] for _, names in seen] == [b"old", b"old"]


@pytest.mark.parametrize("names", [("model", "model.npz"), ("model.npz", "model")])
def test_names_that_begin_alike_do_not_get_into_each_others_way(tmp_path, names):
    contents = {name: name.encode() for name in names}
    publish({tmp_path / name: content for name, content in contents.items()})
    assert tree(tmp_path) == contents


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask_also_where_a_file_was(tmp_path, umask, mode):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o444)
    before = os.umask(umask)
    try:
        publish({tmp_path / "old": b"new", tmp_path / "new": b"new"})
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("old", "new")] == [mode, mode]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_is_replaced_and_the_file_in_the_cache_it_shared_stays(tmp_path, link):
    (tmp_path / "cached").write_bytes(b"old")
    link(tmp_path / "cached", tmp_path / "output")
    publish({tmp_path / "output": b"new"})
    assert tree(tmp_path) == {"cached": b"old", "output": b"new"}
    assert not (tmp_path / "output").is_symlink()
