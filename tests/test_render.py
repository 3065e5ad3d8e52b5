"""The pictures: bytes that depend on nothing but the data, pixels that are those of the images, labels in order."""

import io
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.colors import same_color
from PIL import Image

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import csv_bytes, npz_bytes
from stages.render import PREDICTED, TRUE, confusion_matrix, error_grid, learning_curves, png_bytes, render

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ["errors.npz", "history.csv", "predictions.csv"]
PICTURES = ["errors.png", "curves.png", "confusion.png"]
HISTORY_COLUMNS = ["epoch", "train_loss", "validation_loss", "validation_accuracy"]
rng = np.random.default_rng(0)
ACTUAL, PREDICTION = rng.integers(0, 10, (2, 500), np.uint8)
CONFUSION = [(CLASS_NAMES[i], CLASS_NAMES[j]) for i, j in zip(ACTUAL, PREDICTION, strict=True)]
HISTORY = [(epoch, *rng.random(3)) for epoch in range(1, 11)]


def errors(n, height=32, width=32):
    """Images, true and predicted labels of ``n`` errors."""
    return np.random.default_rng(n).integers(0, 256, (n, height, width), np.uint8), ACTUAL[:n], PREDICTION[:n]


def pixels(figure):
    """The picture that a reader decodes: (height, width, 4), uint8."""
    return np.asarray(Image.open(io.BytesIO(png_bytes(figure))))


def texts(figure):
    return [text.get_text() for text in figure.texts]


def rendered():
    """The bytes of the three pictures of the working directory."""
    render(*map(Path, INPUTS + PICTURES))
    return [Path(name).read_bytes() for name in PICTURES]


@pytest.fixture(scope="module")
def inputs_written(tmp_path_factory):
    """A directory with params.yaml, the three inputs and the pictures that a first rendering made of them."""
    directory = tmp_path_factory.mktemp("laid-out")
    shutil.copy(ROOT / "params.yaml", directory)
    images, actual, predicted = errors(5)
    (directory / "errors.npz").write_bytes(npz_bytes(images=images, actual=actual, predicted=predicted))
    (directory / "history.csv").write_bytes(csv_bytes(HISTORY_COLUMNS, HISTORY))
    (directory / "predictions.csv").write_bytes(csv_bytes(["actual", "predicted"], CONFUSION))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        rendered()
    return directory


@pytest.fixture
def pictures(inputs_written):
    return [(inputs_written / name).read_bytes() for name in PICTURES]


@pytest.fixture
def workdir(inputs_written, tmp_path, monkeypatch):
    """A working directory with params.yaml and the three inputs."""
    for name in ["params.yaml", *INPUTS]:
        shutil.copy(inputs_written / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Bytes


def test_two_renderings_have_equal_bytes_and_other_data_has_others(workdir, pictures):
    assert rendered() == pictures
    Path("history.csv").write_bytes(csv_bytes(HISTORY_COLUMNS, HISTORY[:-1]))
    assert [one == other for one, other in zip(rendered(), pictures, strict=True)] == [True, False, True]


HOSTILE = """
figure.dpi: 42
figure.facecolor: red
figure.constrained_layout.use: True
savefig.dpi: 50
savefig.bbox: tight
savefig.transparent: True
font.family: monospace
font.size: 30
text.usetex: True
text.hinting: none
text.antialiased: False
axes.grid: True
axes.prop_cycle: cycler('color', ['k'])
lines.linewidth: 9
image.cmap: jet
image.origin: lower
image.interpolation: bicubic
path.sketch: 5, 50, 5
"""
EXTENSIONS = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
"""The vector extensions that this processor has beyond those that NumPy needs."""
SETTINGS = {
    "hostile": {
        **{"MATPLOTLIBRC": "config/matplotlibrc", "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        **{"MPLCONFIGDIR": "config", "FREETYPE_PROPERTIES": "truetype:interpreter-version=35"},
        **{"PANDAS_FUTURE": "none", "NUMPY_MADVISE_HUGEPAGE": "none", "PILLOW_BLOCK_SIZE": "none"},
        **{"TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1", "PYTHONWARNINGS": "error"},
        **{"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": " ".join(EXTENSIONS)},
    },
    "unreadable": {
        **{"MATPLOTLIBRC": "config/matplotlibrc", "MPLBACKEND": "none", "MPLCONFIGDIR": "config"},
        **{"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1"},
    },
}
"""Settings of the user's, and what makes libraries take another processor."""


def hostile_folder(kind):
    """Put a matplotlibrc here and, with a list of fonts in which another is called DejaVu Sans, in ``config``."""
    Path("config").mkdir()
    for folder in (Path(), Path("config")):
        (folder / "matplotlibrc").write_bytes(HOSTILE.encode() if kind == "hostile" else b"# caf\xe9")
    font = {**vars(font_manager.fontManager.ttflist[0]), "fname": "fonts/ttf/DejaVuSerif.ttf", "__class__": "FontEntry"}
    fonts = {"_version": font_manager.FontManager.__version__, "__class__": "FontManager", "_findfont_cached": None}
    fonts |= {"ttflist": [font]} if kind == "hostile" else {}
    Path(f"config/fontlist-v{font_manager.FontManager.__version__}.json").write_text(json.dumps(fonts))


@pytest.mark.parametrize(("name", "settings"), SETTINGS.items(), ids=SETTINGS)
def test_bytes_depend_neither_on_the_users_settings_nor_on_the_processor(
    workdir, pictures, environment, name, settings
):
    hostile_folder(name)
    command = [sys.executable, "-m", "stages.render", *INPUTS, *PICTURES]
    subprocess.run(command, check=True, env=environment | settings | {"PYTHONPATH": str(ROOT)})
    for name, picture in zip(PICTURES, pictures, strict=True):
        assert Path(name).read_bytes() == picture, name


def test_a_style_set_in_this_process_neither_reaches_the_pictures_nor_is_lost(workdir, pictures):
    with matplotlib.rc_context({"font.size": 30, "image.cmap": "jet", "savefig.facecolor": "red"}):
        assert rendered() == pictures
        assert matplotlib.rcParams["font.size"] == 30


def test_a_picture_has_no_text_time_or_software_chunk(pictures):
    for picture in pictures:
        kinds, place = [], 8
        while place < len(picture):
            length, kind = struct.unpack_from(">I4s", picture, place)
            kinds.append(kind)
            place += 12 + length
        assert list(dict.fromkeys(kinds)) == [b"IHDR", b"pHYs", b"IDAT", b"IEND"]


# The error grid


@pytest.mark.parametrize(
    ("n", "height", "width", "columns", "zoom", "tile", "size"),
    [
        (10, 32, 32, 8, 5, (180, 230), (1440, 550)),
        (2, 32, 32, 1, 5, (180, 230), (800, 550)),
        (33, 32, 32, 32, 5, (180, 230), (5760, 550)),
        (3, 28, 28, 2, 5, (180, 210), (800, 510)),
        (3, 64, 48, 8, 2, (180, 198), (1440, 288)),
        (3, 127, 1, 8, 1, (180, 197), (1440, 287)),
        (3, 1, 128, 8, 1, (180, 71), (1440, 161)),
    ],
)
def test_every_pixel_of_an_image_is_an_equal_square_of_its_grey_level(n, height, width, columns, zoom, tile, size):
    images, actual, predicted = errors(n, height, width)
    picture = pixels(error_grid(images, actual, predicted, columns)).copy()
    assert picture.shape == (size[1], size[0], 4)
    for i in range(n):
        left = (size[0] - columns * tile[0]) // 2 + i % columns * tile[0] + (tile[0] - zoom * width) // 2
        top = 90 + i // columns * tile[1] + 60
        drawn = picture[top : top + zoom * height, left : left + zoom * width]
        expected = np.kron(images[i], np.ones((zoom, zoom), np.uint8))
        np.testing.assert_array_equal(drawn[..., :3], np.stack([expected] * 3, axis=-1))
        np.testing.assert_array_equal(drawn[..., 3], np.full_like(expected, 255))
        picture[top : top + zoom * height, left : left + zoom * width] = 255
    # What is left are letters: all pixels of the margins are white.
    np.testing.assert_array_equal(picture[-10:], np.full_like(picture[-10:], 255))


def test_no_errors_give_a_picture_that_says_so():
    figure = error_grid(*errors(0), columns=8)
    assert texts(figure)[0] == "0 misclassified examples of the validation batch"
    assert pixels(figure).shape == (90, 1440, 4)


@pytest.mark.parametrize(
    ("n", "columns", "drawn", "title"),
    [
        (1, 8, 1, "1 misclassified example of the validation batch"),
        (401, 8, 400, "401 misclassified examples of the validation batch, the first 400 shown"),
        (51, 1, 50, "51 misclassified examples of the validation batch, the first 50 shown"),
    ],
)
def test_the_title_says_how_many_errors_there_are_and_how_many_are_drawn(n, columns, drawn, title):
    figure = error_grid(*errors(n), columns=columns)
    assert texts(figure)[0] == title
    assert len(figure.images) == drawn


def test_each_image_has_its_predicted_class_above_its_true_class_and_both_above_the_image():
    images, actual, predicted = errors(3)
    figure = error_grid(images, actual, predicted, columns=2)
    captions = figure.texts[3:]
    for i in range(3):
        above, below = captions[2 * i : 2 * i + 2]
        assert (above.get_text(), below.get_text()) == (CLASS_NAMES[predicted[i]], CLASS_NAMES[actual[i]])
        assert above.get_position()[0] == below.get_position()[0]
        assert above.get_position()[1] > below.get_position()[1]
        assert same_color([above.get_color(), below.get_color()], [PREDICTED, TRUE])
        image = figure.images[i]
        height = figure.bbox.height
        assert below.get_position()[1] * height > image.oy + image.get_array().shape[0]
    assert len(captions) == 6


# Curves and confusion matrix


@pytest.mark.parametrize("epochs", [1, 10])
def test_the_curves_have_a_point_an_epoch_with_the_values_of_the_history(epochs):
    history = pd.DataFrame(HISTORY[:epochs], columns=HISTORY_COLUMNS)
    figure = learning_curves(history)
    lines = [line for axes in figure.axes for line in axes.lines]
    for line, column in zip(lines, HISTORY_COLUMNS[1:], strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, epochs + 1))
        np.testing.assert_array_equal(line.get_ydata(), history[column])
    assert pixels(figure).shape == (510, 1350, 4)


@pytest.mark.parametrize("n", [500, 1])
def test_the_confusion_matrix_counts_true_by_predicted_classes_in_label_order(n):
    confusion = pd.DataFrame(CONFUSION[:n], columns=["actual", "predicted"])
    figure = confusion_matrix(confusion["actual"], confusion["predicted"])
    (axes,) = figure.axes
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (ACTUAL[:n], PREDICTION[:n]), 1)
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert tuple(label.get_text() for label in labels) == CLASS_NAMES
    assert {(int(y), int(x)): int(text.get_text()) for text in axes.texts for x, y in [text.get_position()]} == {
        place: count for place, count in np.ndenumerate(expected) if count
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert pixels(figure).shape == (990, 1080, 4)


# Errors


def test_a_label_that_is_no_class_is_refused(workdir):
    images, actual, predicted = errors(2)
    Path("errors.npz").write_bytes(npz_bytes(images=images, actual=actual, predicted=predicted + np.uint8(10)))
    with pytest.raises(UserError, match=r"^errors\.npz: expected labels from 0 to 9, found larger ones$"):
        rendered()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("history.csv", None, "expected a CSV file, found "),
        ("history.csv", b"\x89PNG\r\n", "expected a CSV file, found "),
        ("history.csv", b"epoch,train_loss\n1,2\n", "expected the columns "),
        ("predictions.csv", b"predicted,actual\nbag,bag\n", "expected the columns "),
        ("predictions.csv", b"actual,predicted\nbag,hat\n", "expected the names of the ten classes, found 'hat'"),
        ("errors.npz", b"actual,predicted\n", "expected an .npz archive, found damage"),
    ],
)
def test_a_missing_or_ill_formed_input_is_refused_in_one_line_and_nothing_is_drawn(workdir, name, content, reason):
    Path(name).unlink() if content is None else Path(name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        rendered()
    assert str(caught.value).startswith(f"{name}: {reason}")
    assert str(caught.value).isprintable()
    assert not list(workdir.glob("*.png"))
