"""Resizing against two oracles: exact fractions at every size, and TensorFlow's function at those it gets right."""

import os
from fractions import Fraction
from math import floor

import numpy as np
import pytest

from stages.resize import CHUNK, bilinear_weights, resize_with_pad

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def tf():
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before the import: it spares that of Keras
    import tensorflow as tf

    return tf


def exactly(image, height, width):
    """The definition in fractions: the pixel at (i + 1/2) * m/n - 1/2 along both axes, rounded half to even."""
    side = min(height, width)
    m = len(image)

    def neighbours(i):
        place = (i + Fraction(1, 2)) * m / side - Fraction(1, 2)
        right = place - floor(place)
        return ((max(floor(place), 0), 1 - right), (min(floor(place) + 1, m - 1), right))

    places = [neighbours(i) for i in range(side)]
    result = [[0] * width for _ in range(height)]
    for i, rows in enumerate(places):
        for j, columns in enumerate(places):
            grey = sum(int(image[y, x]) * p * q for y, p in rows for x, q in columns)
            result[(height - side) // 2 + i][(width - side) // 2 + j] = round(grey)
    return result


# Against the definition


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (2, 2), (9, 9), (14, 14), (27, 27), (28, 28), (29, 29), (32, 32), (56, 56), (17, 40), (40, 17), (1, 9)],
)
def test_every_pixel_is_the_exact_one_rounded_half_to_even(height, width):
    np.testing.assert_array_equal(
        resize_with_pad(IMAGES[:2], height, width), [exactly(x, height, width) for x in IMAGES[:2]]
    )


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (2, 3), (3, 2), (5, 4), (64, 7)])
def test_images_of_other_sizes_are_resized_exactly_too(m, n):
    images = np.random.default_rng(m).integers(0, 256, (3, m, m), np.uint8)
    np.testing.assert_array_equal(resize_with_pad(images, n, n), [exactly(image, n, n) for image in images])


@pytest.mark.parametrize(
    ("square", "grey"),
    [
        ([[0, 1], [1, 0]], 0),  # 0.5
        ([[1, 2], [2, 1]], 2),  # 1.5
        ([[254, 255], [255, 254]], 254),  # 254.5
        ([[253, 254], [254, 253]], 254),  # 253.5
        ([[255, 255], [255, 255]], 255),
    ],
)
def test_a_half_is_rounded_to_the_even_grey_level(square, grey):
    assert resize_with_pad(np.array([square], np.uint8), 1, 1).tolist() == [[[grey]]]


@pytest.mark.parametrize(("m", "n"), [(28, 32), (28, 28), (28, 1), (1, 5), (128, 127)])
def test_the_weights_of_an_output_are_whole_and_sum_to_twice_the_number_of_outputs(m, n):
    weights = bilinear_weights(m, n)
    assert weights.shape == (n, m)
    assert weights.dtype == np.float64
    np.testing.assert_array_equal(weights, np.trunc(weights))
    np.testing.assert_array_equal(weights.sum(axis=1), np.full(n, 2 * n))
    assert weights.min() >= 0
    assert (weights > 0).sum(axis=1).max() <= 2


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (28, 32, slice(0, 28), slice(2, 30)),
        (32, 28, slice(2, 30), slice(0, 28)),
        (31, 28, slice(1, 29), slice(0, 28)),
        (28, 29, slice(0, 28), slice(0, 28)),
    ],
)
def test_the_image_is_centred_in_black_with_the_odd_line_at_the_end(height, width, rows, columns):
    resized = resize_with_pad(IMAGES, height, width)
    assert resized.shape == (len(IMAGES), height, width)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized[:, rows, columns], IMAGES)
    assert resized.sum(dtype=int) == IMAGES.sum(dtype=int)


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_every_image_is_resized_by_itself_however_many_there_are(n):
    images = np.resize(IMAGES, (n, 28, 28))
    np.testing.assert_array_equal(resize_with_pad(images, 9, 9), np.resize(resize_with_pad(IMAGES, 9, 9), (n, 9, 9)))


# Against TensorFlow


def by_tensorflow(tf, images, height, width):
    return tf.image.resize_with_pad(images[..., np.newaxis], height, width).numpy()[..., 0]


def test_at_32x32_the_result_is_that_of_tensorflow_rounded_half_to_even(tf):
    images = np.random.default_rng(1).integers(0, 256, (1000, 28, 28), np.uint8)
    expected = by_tensorflow(tf, images, 32, 32)
    np.testing.assert_array_equal(expected, np.trunc(expected * 256) / 256)  # exact, so its halves are halves
    np.testing.assert_array_equal(resize_with_pad(images, 32, 32), np.rint(expected))


@pytest.mark.parametrize(("height", "width"), [(30, 30), (64, 64), (17, 40), (47, 47)])
def test_at_other_sizes_the_result_is_that_of_tensorflow_rounded(tf, height, width):
    # Rounding moves a grey level by at most a half; TensorFlow's float32 is off by up to 0.0005.
    np.testing.assert_allclose(
        resize_with_pad(IMAGES, height, width), by_tensorflow(tf, IMAGES, height, width), rtol=0, atol=0.5 + 0.001
    )


def test_at_26x26_tensorflow_pads_where_nothing_is_to_pad_and_we_do_not(tf):
    white = np.full((1, 28, 28), 255, np.uint8)
    assert by_tensorflow(tf, white, 26, 26).min() == 0
    assert resize_with_pad(white, 26, 26).min() == 255
