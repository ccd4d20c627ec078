"""DALI as the decoder of a swap's frames: the pixels of OpenCV, in order, whatever lies between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.decode import dali_version
from pipelines.picture_decoder import DaliDecoder, open_decoder
from swapfast.errors import SwapfastError
from swapfast.swap.picture_file import read_origin
from swapfast.swap.pictures import BATCH, PictureFolder, PictureSource
from swapfast.threads import ThreadPool
from tests.faces.test_formats import GOOD

pytestmark = [pytest.mark.slow, pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")]

BY_DALI = {"rgb.png", "gray.png", "gamma.png", "baseline.jpg", "full_colour.jpg", "progressive.jpg", "gray.jpg"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> PictureFolder:
    """Each kind of picture, and then enough of them for three batches."""
    folder = tmp_path_factory.mktemp("pictures")
    kinds = list(GOOD.items())
    files = {**GOOD, **{f"{n:02d}_{kinds[n % len(kinds)][0]}": kinds[n % len(kinds)][1] for n in range(30)}}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert len(files) > 3 * BATCH
    return PictureFolder(folder, list(files))


def read(pictures: PictureFolder, decoder: DaliDecoder | None):
    with ThreadPool(2) as pool:
        yield from PictureSource(
            pictures, range(len(pictures.names)), lambda index: index % 2 == 0, pool, 3, None, decoder
        )


def test_all_pixels_are_those_of_opencv_in_the_same_order(pictures, capfd):
    for ours, theirs in zip(read(pictures, DaliDecoder(2)), read(pictures, None), strict=True):
        assert (ours.name, ours.index, ours.is_wanted) == (theirs.name, theirs.index, theirs.is_wanted)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels, err_msg=ours.name)
        assert ours.pixels.dtype == theirs.pixels.dtype and ours.pixels.flags.writeable
        assert ours.origin.data == theirs.origin.data
    assert capfd.readouterr().err == ""


def test_only_what_dali_decodes_alike_is_given_to_it(pictures):
    origins = {name: read_origin(pictures.folder / name) for name in GOOD}
    assert {name for name, origin in origins.items() if DaliDecoder(2).takes(origin)} == BY_DALI
    jpegs = {name for name in BY_DALI if name.endswith(".jpg")}
    assert {name for name, origin in origins.items() if DaliDecoder(2, None, False).takes(origin)} == jpegs


def test_a_broken_picture_is_named_behind_those_before_it(tmp_path, pictures):
    """Its pixels are cut out, so that its header is good: DALI refuses the batch, and goes on with the next."""
    good, names = GOOD["baseline.jpg"], [f"{number:02d}.jpg" for number in range(2 * BATCH + 3)]
    for name in names:
        (tmp_path / name).write_bytes(good)
    decoder = DaliDecoder(2)
    broken = GOOD["rgb.png"]
    at = broken.index(b"IDAT") + 8
    (tmp_path / names[BATCH + 2]).write_bytes(broken[:at] + bytes(40) + broken[at + 40 :])
    expected, seen = reason(tmp_path, names, None), []
    assert expected == reason(tmp_path, names, decoder, seen)
    assert names[BATCH + 2] in expected and "\n" not in expected
    assert [frame.name for frame in seen] == names[: BATCH + 2]
    (tmp_path / names[BATCH + 2]).write_bytes(good)
    whole = list(read(PictureFolder(tmp_path, names), decoder))
    assert len(whole) == len(names) and all((frame.pixels == whole[0].pixels).all() for frame in whole)


def reason(folder: Path, names: list[str], decoder: DaliDecoder | None, seen: list | None = None) -> str:
    with pytest.raises(SwapfastError) as error:
        for frame in read(PictureFolder(folder, names), decoder):
            (seen if seen is not None else []).append(frame)
    return str(error.value)


def test_which_decoder_is_opened(pictures):
    assert open_decoder("opencv", "cuda:1", 2) is None
    assert open_decoder("auto", "cpu", 2) is None
    assert isinstance(open_decoder("dali", "cpu", 2), DaliDecoder)
    jpeg, png = (read_origin(pictures.folder / name) for name in ("baseline.jpg", "rgb.png"))
    on_gpu = open_decoder("auto", "cuda:1", 2)
    assert on_gpu is not None and on_gpu.takes(jpeg) and not on_gpu.takes(png)
    everything = open_decoder("dali", "cuda", 2)
    assert everything is not None and everything.takes(jpeg) and everything.takes(png)
