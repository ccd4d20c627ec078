"""The pictures that windows show, shared by threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from swapfast.preview.buffer import PreviewBase, PreviewBuffer


def _picture(shade: int) -> np.ndarray:
    return np.full((2, 3, 3), shade, np.uint8)


def test_the_newest_picture_of_each_name_comes_once():
    buffer = PreviewBuffer()
    assert not buffer.is_updated and list(buffer.get_images()) == []
    for shade in (1, 2):
        buffer.add_image("a", _picture(shade))
    buffer.add_image("b", _picture(3))
    assert buffer.is_updated
    assert [(name, int(image[0, 0, 0])) for name, image in buffer.get_images()] == [("a", 2), ("b", 3)]
    assert not buffer.is_updated
    assert len(list(buffer.get_images())) == 2, "a window that is opened later sees them too"


def test_it_is_updated_until_the_last_picture_is_taken():
    buffer = PreviewBuffer()
    buffer.add_image("a", _picture(1))
    images = buffer.get_images()
    next(images)
    assert buffer.is_updated
    buffer.add_image("a", _picture(2))  # while the others are being shown
    assert list(images) == [] and buffer.is_updated
    assert [int(image[0, 0, 0]) for _, image in buffer.get_images()] == [2] and not buffer.is_updated


def test_threads_lose_no_picture():
    buffer = PreviewBuffer()

    def add(name: str) -> None:
        for shade in range(200):
            buffer.add_image(name, _picture(shade))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert all(image.shape == (2, 3, 3) for _, image in buffer.get_images())
    assert {name: int(image[0, 0, 0]) for name, image in buffer.get_images()} == dict.fromkeys("abcd", 199)
    assert not buffer.is_updated


@pytest.mark.parametrize("image", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8)])
def test_what_is_no_picture_is_refused_where_it_is_added(image):
    with pytest.raises(ValueError, match="want"):
        PreviewBuffer().add_image("a", image)


def test_a_window_without_triggers_only_shows():
    base = PreviewBase(PreviewBuffer())
    assert not base._should_close and not base._set("quit")
    event = threading.Event()
    base = PreviewBase(PreviewBuffer(), {"shutdown": event})
    event.set()
    assert base._should_close
