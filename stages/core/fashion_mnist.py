"""The data set as published: four IDX files, pinned by the SHA-256 of their content, and ten classes.

The format (Y. LeCun, the MNIST database page): a big-endian header of two zero bytes, the type code 0x08 for unsigned
bytes, the number of dimensions and each dimension as a 32-bit integer; then the bytes in row-major order.
"""

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError


class Published(NamedTuple):
    """One of the four files: the shape of its array and the SHA-256 of its whole content."""

    shape: tuple[int, ...]
    sha256: str

    @property
    def header(self) -> bytes:
        """The bytes before the array."""
        return struct.pack(f">BBBB{len(self.shape)}I", 0, 0, 8, len(self.shape), *self.shape)

    @property
    def size(self) -> int:
        """The length of the file in bytes."""
        return len(self.header) + int(np.prod(self.shape))


FILES = {
    "train-images-idx3-ubyte": Published(
        (60_000, 28, 28), "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": Published((60_000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": Published(
        (10_000, 28, 28), "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": Published((10_000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}


CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""The classes in label order, named as in the book (the data set's own list says T-shirt/top)."""


def difference(name: str, content: bytes) -> str | None:
    """Return how ``content`` differs from the published file ``name``, or None if it does not."""
    published = FILES[name]
    if len(content) != published.size:
        return f"expected {published.size} bytes, found {len(content)}"
    found = hashlib.sha256(content).hexdigest()
    return None if found == published.sha256 else f"expected SHA-256 {published.sha256}, found {found}"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one of the four files.

    Returns:
        Images (n, 28, 28) or labels (n,), uint8.

    Raises:
        UserError: The file is missing or is not byte for byte the published one.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: expected a file, found none: run `dvc repro download`") from None
    found = difference(path.name, content)
    if found:
        raise UserError(f"{path}: {found}: remove it and run `dvc repro download`")
    published = FILES[path.name]
    return np.frombuffer(content, np.uint8, offset=len(published.header)).reshape(published.shape)
