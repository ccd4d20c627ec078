"""Folders of small made-up faces for the data path."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.synthetic import synthesize


@pytest.fixture(scope="session")
def made_faces(tmp_path_factory):
    """a (14 faces), b (9 faces) and truth (3 pairs) at 96 px."""
    out = tmp_path_factory.mktemp("faces") / "out"
    synthesize(out, faces=14, size=96, pairs=3, seed=4, workers=2)
    for name in sorted((out / "b").glob("00*"))[-15:]:
        name.unlink()
    return out


@pytest.fixture
def damaged(made_faces, tmp_path):
    """A copy of folder a whose 0003.png passes every check but that of its pixels."""
    folder = tmp_path / "a"
    folder.mkdir()
    for path in (made_faces / "a").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    picture = folder / "0003.png"
    other = np.zeros((96, 96, 3), np.uint8)
    cv2.imwrite(str(picture), other)
    import struct
    import zlib

    data = picture.read_bytes()
    at = data.index(b"IDAT")
    length = struct.unpack(">I", data[at - 4 : at])[0]
    body = b"IDAT" + b"\xff" * length
    picture.write_bytes(data[:at] + body + struct.pack(">I", zlib.crc32(body)) + data[at + 4 + length + 4 :])
    return folder
