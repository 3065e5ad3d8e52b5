"""The four IDX files as published, and what is said of a file that is not one of them."""

import hashlib
import re

import numpy as np
import pytest

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES, FILES, Published, difference, read_idx

IMAGES, LABELS, OTHER_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte"
CONTENTS = {  # magic number, dimensions, array
    IMAGES: bytes.fromhex("00000803 00000002 00000003 00000002") + bytes(range(12)),
    LABELS: bytes.fromhex("00000801 00000003") + bytes([9, 0, 1]),
    OTHER_LABELS: bytes.fromhex("00000801 00000003") + bytes([1, 0, 9]),
}
SHAPES = {IMAGES: (2, 3, 2), LABELS: (3,), OTHER_LABELS: (3,)}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A directory with small files that stand for the published ones."""
    for name, content in CONTENTS.items():
        monkeypatch.setitem(FILES, name, Published(SHAPES[name], hashlib.sha256(content).hexdigest()))
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_published_files_have_these_headers_sizes_and_hashes():
    assert {name: (file.header, file.size, file.sha256) for name, file in FILES.items()} == {
        "train-images-idx3-ubyte": (
            bytes.fromhex("00000803 0000ea60 0000001c 0000001c"),
            47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1-ubyte": (
            bytes.fromhex("00000801 0000ea60"),
            60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3-ubyte": (
            bytes.fromhex("00000803 00002710 0000001c 0000001c"),
            7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1-ubyte": (
            bytes.fromhex("00000801 00002710"),
            10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    }


def test_the_ten_classes_are_those_of_the_book_in_label_order():
    names = "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
    assert ", ".join(CLASS_NAMES) == names


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_is_read_in_row_major_order_without_its_header(raw, name):
    array = read_idx(raw / name)
    assert array.dtype == np.uint8
    assert array.shape == SHAPES[name]
    assert array.tobytes() == CONTENTS[name][-array.size :]
    assert difference(name, CONTENTS[name]) is None


def test_a_missing_file_is_refused_with_what_to_do(raw):
    (raw / LABELS).unlink()
    with pytest.raises(UserError, match=f"/{LABELS}: expected a file, found none: run `dvc repro download`$"):
        read_idx(raw / LABELS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LABELS, b"", "expected 11 bytes, found 0"),
        (LABELS, CONTENTS[LABELS][:-1], "expected 11 bytes, found 10"),
        (IMAGES, CONTENTS[LABELS], "expected 28 bytes, found 11"),
        (LABELS, CONTENTS[OTHER_LABELS], "expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"),
    ],
    ids=["empty", "truncated", "labels as images", "other labels"],
)
def test_what_is_not_the_published_file_is_refused_with_the_difference(raw, name, content, message):
    (raw / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_idx(raw / name)
    assert re.fullmatch(f"{raw / name}: {message}: remove it and run `dvc repro download`", str(caught.value))


def test_what_the_refusal_says_brings_a_damaged_file_back(pipeline):
    images = pipeline.root / "data/raw" / IMAGES
    whole = images.read_bytes()
    images.unlink()

    pipeline.dvc("repro", "download")
    assert images.read_bytes() == whole
    assert pipeline.changed() == set()
