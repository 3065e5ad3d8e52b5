r"""Draw the errors of the validation batch, the learning curves and the confusion matrix.

    python -m stages.render data/errors.npz plots/history.csv plots/predictions.csv \
        plots/errors.png plots/curves.png plots/confusion.png

The bytes of a picture depend on nothing but the data and the pinned matplotlib: its built-in style and fonts, no
metadata, and a compression that does not depend on the processor.
"""

import io
import math
import os
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core.command import UserError, run
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import publish, read_csv, read_npz
from stages.core.params import MAX_ROWS, load_params

if folder := os.environ.get("MPLCONFIGDIR"):
    os.environ["MPLCONFIGDIR"] = os.path.abspath(folder)  # it may be relative to this folder
# In the next folder matplotlib finds the matplotlibrc that it is published with, before the user's.
with chdir(Path(find_spec("matplotlib").origin).with_name("mpl-data")):  # type: ignore[arg-type, union-attr]
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.ticker import MaxNLocator

# The list of fonts in the user's cache may name others "DejaVu Sans".
vars(fontManager).clear()
fontManager.ttflist = []
fontManager.addfont(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))

DPI = 150
IMAGE_PIXELS = 160
"""About the side of an image in the error grid; it is drawn at a whole multiple of its own size, so every pixel of it
is an equal square."""
MARGIN, CAPTION, HEADER = 10, 50, 90  # pixels: around a tile, for its two lines, above the grid
PREDICTED, TRUE = "#b3261e", "#1a1a1a"
Z_RLE = 3
"""zlib's strategy that only looks for runs: the others' matches may differ with the processor's instructions."""


def png_bytes(figure: Figure) -> bytes:
    """Encode a figure as PNG, without the software's name and version."""
    buffer = io.BytesIO()
    options = {"compress_type": Z_RLE, "compress_level": 9}
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs=options)
    return buffer.getvalue()


def error_grid(
    images: NDArray[np.uint8], actual: NDArray[np.uint8], predicted: NDArray[np.uint8], columns: int
) -> Figure:
    """Tile misclassified images, each captioned with its predicted class over its true one.

    Args:
        images: (n, height, width), uint8; n may be 0. At most ``MAX_ROWS`` rows are drawn, and the title says so.
        actual: Labels (n,), uint8.
        predicted: Labels (n,), uint8.
        columns: Images in a row.
    """
    shown = images[: MAX_ROWS * columns]
    zoom = max(IMAGE_PIXELS // max(images.shape[1:]), 1)
    tile_width = max(zoom * images.shape[2], IMAGE_PIXELS) + 2 * MARGIN  # wide enough for every class name
    tile_height = zoom * images.shape[1] + CAPTION + 2 * MARGIN
    width, height = max(columns * tile_width, 5 * IMAGE_PIXELS), math.ceil(len(shown) / columns) * tile_height + HEADER
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, **style: Any) -> None:  # x and y in pixels, y downwards as in the picture
        figure.text(x / width, 1 - y / height, text, va="center", **style)

    write(width / 2, 30, grid_title(len(images), len(shown)), ha="center", size=11)
    write(width / 2 + 10, 65, "predicted", ha="right", size=9, color=PREDICTED)
    write(width / 2 + 22, 65, "over  true", ha="left", size=9, color=TRUE)
    for i, image in enumerate(shown):
        row, column = divmod(i, columns)
        left = (width - columns * tile_width) // 2 + column * tile_width
        top = HEADER + row * tile_height
        write(left + tile_width / 2, top + 15, CLASS_NAMES[predicted[i]], ha="center", size=8, color=PREDICTED)
        write(left + tile_width / 2, top + 38, CLASS_NAMES[actual[i]], ha="center", size=8, color=TRUE)
        grey = image.repeat(zoom, 0).repeat(zoom, 1)
        x, y = left + (tile_width - grey.shape[1]) // 2, height - (top + CAPTION + MARGIN + grey.shape[0])
        figure.figimage(np.stack([grey] * 3, axis=-1), x, y)  # as colours, which no colour map rounds
    return figure


def grid_title(errors: int, shown: int) -> str:
    """Say how many errors there are and, if not all are drawn, how many are."""
    examples = "example" if errors == 1 else "examples"
    first = f", the first {shown} shown" if shown < errors else ""
    return f"{errors} misclassified {examples} of the validation batch{first}"


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw the losses and the accuracy of every epoch, side by side."""
    figure = Figure(figsize=(9, 3.4), dpi=DPI, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for column, style in (("train_loss", "o-"), ("validation_loss", "s--")):
        loss.plot(history["epoch"], history[column], style, markersize=4, label=column.replace("_loss", ""))
    loss.set(title="Cross-entropy", xlabel="epoch", ylabel="nats per example")
    loss.legend()
    accuracy.plot(history["epoch"], history["validation_accuracy"], "s--", markersize=4, color="C1")
    accuracy.set(title="Validation accuracy", xlabel="epoch", ylabel="accuracy")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def confusion_matrix(actual: pd.Series, predicted: pd.Series) -> Figure:
    """Count the examples of each true class (rows) by predicted class (columns), in label order."""
    counts = pd.crosstab(actual, predicted).reindex(index=CLASS_NAMES, columns=CLASS_NAMES, fill_value=0).to_numpy()
    figure = Figure(figsize=(7.2, 6.6), dpi=DPI, layout="constrained")
    axes: Axes = figure.subplots()
    axes.imshow(counts, cmap="Blues", interpolation="nearest")
    ticks = range(len(CLASS_NAMES))
    axes.set_xticks(ticks, CLASS_NAMES, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, CLASS_NAMES)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix of {len(actual):,} validation examples")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            color = "white" if count > 0.6 * counts.max() else "black"
            axes.text(j, i, str(count), ha="center", va="center", size=9, color=color)
    return figure


def render(
    errors_npz: Path, history_csv: Path, predictions_csv: Path, errors_png: Path, curves_png: Path, confusion_png: Path
) -> None:
    """Write the three pictures."""
    columns = load_params().render.columns
    shape = {"actual": ("uint8", (None,)), "predicted": ("uint8", (None,))}
    images, actual, predicted = read_npz(errors_npz, images=("uint8", (None, None, None)), **shape)
    history = read_csv(history_csv, ["epoch", "train_loss", "validation_loss", "validation_accuracy"])
    confusion = read_csv(predictions_csv, ["actual", "predicted"])
    unknown = {*confusion["actual"], *confusion["predicted"]} - {*CLASS_NAMES}
    if unknown:
        raise UserError(f"{predictions_csv}: expected the names of the ten classes, found {min(map(str, unknown))!r}")
    if max(actual.max(initial=0), predicted.max(initial=0)) >= len(CLASS_NAMES):
        raise UserError(f"{errors_npz}: expected labels from 0 to {len(CLASS_NAMES) - 1}, found larger ones")
    with matplotlib.rc_context():  # a style set in this process must not reach the pictures
        matplotlib.rcdefaults()
        publish(
            {
                errors_png: png_bytes(error_grid(images, actual, predicted, columns)),
                curves_png: png_bytes(learning_curves(history)),
                confusion_png: png_bytes(confusion_matrix(confusion["actual"], confusion["predicted"])),
            }
        )


if __name__ == "__main__":
    run(render)
