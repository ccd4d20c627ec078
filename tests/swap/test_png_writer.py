"""PNGs that are written fast: the same pixels come back, whoever reads them."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from swapfast.swap.png_writer import encode_pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (1, 5, 3), (64, 31, 3), (33, 2, 4)])
@pytest.mark.parametrize("is_flat", [False, True], ids=["noise", "flat"])
def test_pixels_come_back(shape: tuple[int, ...], dtype: type, is_flat: bool) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    pixels = np.broadcast_to(pixels[0, 0], shape) if is_flat else pixels
    data = encode_pixels(pixels)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.dtype == dtype and np.array_equal(decoded, pixels)
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()  # Pillow checks every sum
        assert picture.size == (shape[1], shape[0])
    assert encode_pixels(pixels) == data


def test_a_part_of_a_larger_picture_is_written_as_it_is() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (40, 50, 3), np.uint8)[5:20:2, ::-1]
    assert np.array_equal(cv2.imdecode(np.frombuffer(encode_pixels(pixels), np.uint8), cv2.IMREAD_COLOR), pixels)


def test_threads_write_the_same_bytes() -> None:
    """Side by side, again and again, from arrays that lie elsewhere in memory each time."""
    rng = np.random.default_rng(5)
    pictures = [np.cumsum(rng.integers(0, 9, (60 + 9 * n, 64, 3)), 0).astype(np.uint8) for n in range(8)]
    once = [encode_pixels(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda n: encode_pixels(pictures[n % 8].copy()), range(400)))
    assert written == once * 50
