"""The four IDX files as published, and what is said of a file that is not one of them."""

import hashlib
import re
import subprocess

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


@pytest.mark.parametrize(
    ("name", "header", "size", "sha256"),
    [
        (
            "train-images-idx3-ubyte",
            "00000803 0000ea60 0000001c 0000001c",
            47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        (
            "train-labels-idx1-ubyte",
            "00000801 0000ea60",
            60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        (
            "t10k-images-idx3-ubyte",
            "00000803 00002710 0000001c 0000001c",
            7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        (
            "t10k-labels-idx1-ubyte",
            "00000801 00002710",
            10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ],
)
def test_each_published_file_has_its_header_size_and_hash(name, header, size, sha256):
    published = FILES[name]
    assert (published.header, published.size, published.sha256) == (bytes.fromhex(header), size, sha256)


def test_there_are_four_files():
    assert len(FILES) == 4


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
        (LABELS, CONTENTS[LABELS] + b"\n", "expected 11 bytes, found 12"),
        (IMAGES, CONTENTS[LABELS], "expected 28 bytes, found 11"),
        (LABELS, CONTENTS[IMAGES], "expected 11 bytes, found 28"),
        (LABELS, CONTENTS[OTHER_LABELS], "expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"),
        (LABELS, CONTENTS[LABELS][:-1] + b"\0", "expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"),
    ],
    ids=["empty", "truncated", "too long", "labels as images", "images as labels", "other labels", "flipped bit"],
)
def test_what_is_not_the_published_file_is_refused_with_the_difference(raw, name, content, message):
    (raw / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_idx(raw / name)
    assert re.fullmatch(f"{raw / name}: {message}: remove it and run `dvc repro download`", str(caught.value))


def test_every_flipped_bit_is_found(raw):
    for bit in range(8 * len(CONTENTS[IMAGES])):
        content = bytearray(CONTENTS[IMAGES])
        content[bit // 8] ^= 1 << bit % 8
        assert difference(IMAGES, bytes(content))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-images-idx3-ubyte", lambda content: content[: len(content) // 2]),
        (LABELS, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    ],
)
def test_the_stage_that_reads_a_damaged_file_ends_with_one_line_and_no_output(pipeline, tmp_path, name, damage):
    raw = pipeline.root / "data/raw"
    whole = (raw / name).read_bytes()
    content = damage(whole)
    (raw / name).write_bytes(content)
    done = subprocess.run(
        ["python", "-m", "stages.resize", "data/raw", str(tmp_path / "resized")],
        cwd=pipeline.root,
        env=pipeline.environment,
        capture_output=True,
        text=True,
    )

    expected, found = f"{len(whole)} bytes", str(len(content))
    if len(content) == len(whole):
        expected, found = (hashlib.sha256(text).hexdigest() for text in (whole, content))
        expected = f"SHA-256 {expected}"
    line = f"resize: data/raw/{name}: expected {expected}, found {found}: remove it and run `dvc repro download`\n"
    assert (done.returncode, done.stderr) == (1, line)
    assert not (tmp_path / "resized").exists()


def test_what_the_refusal_says_brings_a_damaged_file_back(pipeline):
    images = pipeline.root / "data/raw" / IMAGES
    whole = images.read_bytes()
    images.unlink()

    pipeline.dvc("repro", "download")
    assert images.read_bytes() == whole
    assert pipeline.changed() == set()
