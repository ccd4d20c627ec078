"""DeepFaceLab's aligned JPEGs and packs as folders of faces: what is read, what is refused; nothing is called."""

from __future__ import annotations

import json
import os
import pickle
import struct

import cv2
import numpy as np
import pytest

import cli
from pipelines.sides import scan_side
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import inspect_folder, scan_folder
from swapfast.faces.image import decode_image, read_image
from swapfast.faces.masks import face_mask
from swapfast.faces.reader import DFL_NOTE
from tests.faces.dfl_files import a_face_in, dfl_jpeg, with_segment, write_pack, xseg_mask
from tests.faces.face_samples import a_picture, write_plain


class Called:
    """What an unpickler would call."""

    def __reduce__(self):
        return os.mkdir, ("called",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_landmarks_come_from_the_metadata(tmp_path, protocol):
    landmarks = a_face_in(160, 12)
    matrix = np.eye(2, 3)  # an array among plain values
    (tmp_path / "00001_0.jpg").write_bytes(dfl_jpeg(landmarks, protocol=protocol, image_to_face_mat=matrix))
    (record,) = scan_folder(tmp_path).records
    assert (record.kind, record.encoding, record.width, record.height) == ("plain", "jpeg", 160, 160)
    assert record.notes == (DFL_NOTE,)
    np.testing.assert_array_equal(record.landmarks, landmarks)


def test_landmarks_may_be_an_array(tmp_path):
    landmarks = a_face_in(160)
    jpeg = dfl_jpeg(landmarks)
    described = pickle.dumps({"landmarks": landmarks.astype(np.float64)}, 4)
    (tmp_path / "one.jpg").write_bytes(with_segment(jpeg, described))  # before the other segment, which is the last
    (tmp_path / "two.jpg").write_bytes(with_segment(cv2.imencode(".jpg", a_picture(160, 160))[1].tobytes(), described))
    for record in scan_folder(tmp_path).records:
        np.testing.assert_array_equal(record.landmarks, landmarks)


def of_numpy_1(table: object) -> bytes:
    """A pickle as Python 3.6 and numpy 1 make it: protocol 3, and another module's name."""
    return pickle.dumps(table, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.mark.parametrize("is_packed", [False, True])
def test_files_as_deepfacelab_lays_them_out(tmp_path, is_packed, within):
    """Byte by byte: its segment is the last APP, its values are of numpy 1, its pack's last offset is absolute."""
    landmarks = a_face_in(160, 9).astype(np.float32)
    jpeg = cv2.imencode(".jpg", a_picture(160, 160))[1].tobytes()
    app0_end = 4 + struct.unpack(">H", jpeg[4:6])[0]
    assert jpeg[:4] == b"\xff\xd8\xff\xe0"
    exif = b"\xff\xe1" + struct.pack(">H", 10) + b"Exif\0\0MM"
    content = of_numpy_1(
        {
            "face_type": "whole_face",
            "landmarks": landmarks,
            "source_filename": "00001.png",
            "source_rect": [10, 20, 300, 310],
            "source_landmarks": (landmarks * 2).tolist(),
            "image_to_face_mat": np.eye(2, 3, dtype=np.float32),
            "eyebrows_expand_mod": np.float64(1.0),
            "seg_ie_polys": {"polys": [{"type": 1, "pts": np.zeros((4, 2), np.float32)}]},
            "xseg_mask": xseg_mask(landmarks, 160, 256),
        }
    )
    assert b"numpy.core" in content
    head = jpeg[:app0_end] + exif
    face = head + b"\xff\xef" + struct.pack(">H", len(content) + 2) + content + jpeg[app0_end:]
    (tmp_path / "faces").mkdir()
    if is_packed:
        listed = of_numpy_1([{"filename": "00001_0.jpg", "person_name": None, "landmarks": landmarks}])
        start = 16 + len(listed) + 16
        table = struct.pack("<QQ", 0, start + len(face))
        (tmp_path / "faces" / "faceset.pak").write_bytes(struct.pack("<QQ", 1, len(listed)) + listed + table + face)
    else:
        (tmp_path / "faces" / "00001_0.jpg").write_bytes(face)
    (record,) = scan_folder(tmp_path / "faces").records
    assert (record.kind, record.path.name, record.width, record.height) == ("plain", "00001_0.jpg", 160, 160)
    np.testing.assert_array_equal(record.landmarks, landmarks)
    np.testing.assert_array_equal(read_image(record.path), decode_image(jpeg))
    mask = face_mask(record, CropConfig(), MaskConfig(mask_type="file"), 64)
    drawn = face_mask(record, CropConfig(), MaskConfig(mask_type="components"), 64)
    within(
        "the mask against the hull of the landmarks, share of px", float(((mask > 127) != (drawn > 127)).mean()), 0.1
    )


def test_a_json_beside_the_picture_ranks_over_its_metadata(tmp_path):
    (tmp_path / "one.jpg").write_bytes(dfl_jpeg(a_face_in(160)))
    own = a_face_in(160, 20)
    (tmp_path / "one.json").write_text(json.dumps({"landmarks": own.tolist()}))
    (record,) = scan_folder(tmp_path).records
    np.testing.assert_allclose(record.landmarks, own)
    assert DFL_NOTE not in record.notes


def test_the_mask_in_the_metadata_is_mask_type_file(tmp_path, within):
    landmarks = a_face_in(160)
    (tmp_path / "one.jpg").write_bytes(dfl_jpeg(landmarks, xseg_mask=xseg_mask(landmarks, 160, 256)))
    (record,) = scan_folder(tmp_path).records
    from_metadata = face_mask(record, CropConfig(), MaskConfig(mask_type="file", blur_kernel=0), 128)

    other = tmp_path / "plain"
    other.mkdir()
    mask = cv2.imdecode(xseg_mask(landmarks, 160, 160), cv2.IMREAD_GRAYSCALE)
    write_plain(other / "one.png", read_image(record.path), landmarks, mask)
    (plain,) = scan_folder(other).records
    from_file = face_mask(plain, CropConfig(), MaskConfig(mask_type="file", blur_kernel=0), 128)
    # The same hull, drawn at two sizes: they may differ along its edge, a pixel wide and 300 px long, of 16384.
    within("mask in the metadata against one beside it, levels", abs(from_metadata - from_file.astype(int)).mean(), 5)
    assert from_metadata.max() == 255 and 0.1 < (from_metadata > 127).mean() < 0.7


def test_a_mask_file_beside_the_picture_ranks_over_the_metadata(tmp_path):
    landmarks = a_face_in(160)
    (tmp_path / "one.jpg").write_bytes(dfl_jpeg(landmarks, xseg_mask=xseg_mask(landmarks, 160, 256)))
    cv2.imwrite(str(tmp_path / "one_mask.png"), np.full((160, 160), 255, np.uint8))
    (record,) = scan_folder(tmp_path).records
    assert record.mask_file == tmp_path / "one_mask.png"


@pytest.mark.parametrize("mask", [b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_damaged_mask_spoils_the_face_only_where_it_is_asked_for(tmp_path, mask):
    (tmp_path / "one.jpg").write_bytes(dfl_jpeg(a_face_in(160), xseg_mask=np.frombuffer(mask, np.uint8)))
    (tmp_path / "two.jpg").write_bytes(dfl_jpeg(a_face_in(160), seed=1, xseg_mask=xseg_mask(a_face_in(160), 160, 64)))
    folder = scan_folder(tmp_path)
    assert len(folder.records) == 2 and not folder.bad
    (bad,) = folder.with_mask("file").bad
    assert bad.path.name == "one.jpg" and "the mask in its DeepFaceLab metadata is" in bad.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"landmarks": Called()}, 4), "mkdir"),
        (pickle.dumps(Called(), 2), "mkdir"),
        (pickle.dumps([1, 2]), "is not a table"),
        (pickle.dumps({"face_type": "full_face"}), 'has no "landmarks"'),
        (pickle.dumps({"landmarks": [[1.0, 2.0], [3.0]]}), "rows of two numbers"),
        (pickle.dumps({"landmarks": np.zeros((5, 2))}), "5x2"),
        (pickle.dumps({"landmarks": (np.zeros((68, 2)) + 3).tolist()}), "one spot"),
        (pickle.dumps({"landmarks": (a_face_in(160) * 40).tolist()}), "outside the picture"),
        (pickle.dumps({"landmarks": (a_face_in(160) / 160).tolist()}), "shares of the picture's edge"),
        (pickle.dumps({"landmarks": a_face_in(160).tolist()})[:-9], "damaged"),
        (b"\x80\x04" + b"]" * 900 + b"a" * 899 + b".", "deep"),
        (b"another program's", "no faceswap header in it and no one.json"),
    ],
)
def test_metadata_that_cannot_be_used_are_named_and_nothing_is_called(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "one.jpg").write_bytes(with_segment(cv2.imencode(".jpg", a_picture(160, 160))[1].tobytes(), content))
    (bad,) = scan_folder(faces).bad
    assert reason in bad.reason
    assert not (tmp_path / "called").exists()


def some_faces(count: int = 6, edge: int = 160) -> dict[str, bytes]:
    return {f"{i:05}_0.jpg": dfl_jpeg(a_face_in(edge, 3 * i), edge, seed=i) for i in range(count)}


@pytest.mark.slow
@pytest.mark.parametrize("given", ["folder", "pack"])
def test_a_pack_holds_the_same_faces_as_its_folder(tmp_path, given):
    faces = some_faces()
    loose, packed = tmp_path / "loose", tmp_path / "packed"
    loose.mkdir()
    packed.mkdir()
    for name, data in faces.items():
        (loose / name).write_bytes(data)
    pack = write_pack(packed / "faceset.pak", faces)
    expected = scan_folder(loose)
    folder = scan_folder(packed if given == "folder" else pack)
    assert not folder.bad and folder.path == pack
    for one, other in zip(expected.records, folder.records, strict=True):
        assert (one.path.name, one.content, one.pixels) == (other.path.name, other.content, other.pixels)
        np.testing.assert_array_equal(one.landmarks, other.landmarks)
        crops = [crop_face(record, read_image(record.path), CropConfig(), 64) for record in (one, other)]
        np.testing.assert_array_equal(*crops)


def test_a_pack_is_read_again_only_where_it_has_changed(tmp_path):
    pack = write_pack(tmp_path / "faceset.pak", some_faces())
    os.utime(pack, ns=(10**18, 10**18))
    first = scan_folder(tmp_path)
    assert scan_folder(tmp_path, known=first.records).read == 0
    write_pack(pack, some_faces(7))
    os.utime(pack, ns=(2 * 10**18, 10**18 + 1))
    again = scan_folder(tmp_path, known=first.records)
    assert (again.read, len(again.records)) == (7, 7)


def test_the_last_number_of_a_pack_is_not_relied_on(tmp_path):
    faces = some_faces(3)
    one = write_pack(tmp_path / "one.pak", faces, absolute_last=True)
    other = write_pack(tmp_path / "other.pak", faces, absolute_last=False)
    for pack in (one, other):
        record = scan_folder(pack).records[-1]
        np.testing.assert_array_equal(read_image(record.path), decode_image(faces["00002_0.jpg"]))


def test_faces_of_people_keep_the_person_in_their_names(tmp_path):
    pack = write_pack(tmp_path / "faceset.pak", some_faces(2), person="ann")
    assert [record.path.name for record in scan_folder(pack).records] == ["ann_00000_0.jpg", "ann_00001_0.jpg"]


def test_pictures_beside_a_pack_are_asked_about(tmp_path):
    write_pack(tmp_path / "faceset.pak", some_faces(2))
    (tmp_path / "more.jpg").write_bytes(dfl_jpeg(a_face_in(160)))
    with pytest.raises(SwapfastError, match=r"1 pictures beside it; give .*faceset.pak for the pack"):
        scan_folder(tmp_path)
    assert len(scan_folder(tmp_path / "faceset.pak").records) == 2


def a_head(pickled: bytes, version: int = 1, offsets: tuple[int, ...] = ()) -> bytes:
    return struct.pack("<QQ", version, len(pickled)) + pickled + struct.pack(f"<{len(offsets)}Q", *offsets)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its version is 0"),
        (a_head(b"", version=2), "its version is 2"),
        (struct.pack("<QQ", 1, 1 << 62), "the file 16"),
        (a_head(pickle.dumps([Called()])), "mkdir"),
        (a_head(pickle.dumps({"filename": "a.jpg"})), "lists no faces"),
        (a_head(pickle.dumps([])), "without faces"),
        (a_head(pickle.dumps([{"shape": 1}])), "has no name"),
        (a_head(pickle.dumps([{"filename": "../a.jpg"}])), "no name of a file"),
        (a_head(pickle.dumps([{"filename": "a.jpg"}] * 2)), "two of its faces"),
        (a_head(pickle.dumps([{"filename": "a.jpg"}]), offsets=(1 << 63, 0)) + b"x", "one behind the other"),
        (a_head(pickle.dumps([{"filename": "a.jpg"}])), "ends within its table"),
        (a_head(pickle.dumps([{"filename": "a.jpg"}, {"filename": "b.jpg"}]), offsets=(5, 2, 9)) + bytes(20), "behind"),
    ],
)
def test_a_damaged_pack_is_refused_in_one_line(tmp_path, monkeypatch, capsys, content, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faceset.pak").write_bytes(content)
    assert cli.main(["inspect", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and "faceset.pak" in line
    assert not (tmp_path / "called").exists()


def test_a_pack_that_is_cut_off_has_one_bad_face(tmp_path):
    pack = write_pack(tmp_path / "faceset.pak", some_faces(4))
    pack.write_bytes(pack.read_bytes()[:-300])  # the last face is as long as there are bytes left
    report = inspect_folder(tmp_path)
    assert report["faces"] == 3 and [bad["file"] for bad in report["bad"]] == ["00003_0.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "augment"])
def test_no_picture_is_drawn_beside_a_pack(tmp_path, capsys, command):
    pack = write_pack(tmp_path / "faceset.pak", some_faces(2))
    assert cli.main([command, str(pack), "-o", str(tmp_path / "sheet.png")]) == 2
    assert "lies in the faces' folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [pack]


@pytest.mark.slow
def test_train_and_prepare_take_packs_and_folders(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, data in some_faces(8).items():
        (tmp_path / "a" / name).write_bytes(data)
    write_pack(tmp_path / "b" / "faceset.pak", some_faces(9))
    folders = ["-A", str(tmp_path / "a"), "-B", str(tmp_path / "b"), "-m", str(tmp_path / "model")]
    assert cli.main(["train", *folders, "-t", "tiny", "-b", "2", "-i", "1", "--cache", "off"]) == 0
    printed = "".join(capsys.readouterr())
    assert f"8 with {DFL_NOTE}" in printed and f"9 with {DFL_NOTE}" in printed
    assert cli.main(["prepare", str(tmp_path / "b"), str(tmp_path / "prepared"), "--size", "64"]) == 0
    assert len(scan_side(tmp_path / "prepared", "extended", False).folder.records) == 9
