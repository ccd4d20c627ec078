"""What is no video that can be read is one line that says so."""

from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.video.cuts import CutFinder
from swapfast.video.pixels import Conversion, working_format
from swapfast.video.probe import ColourTags, probe
from swapfast.video.reader import VideoFrame, VideoReader, upright_points
from tests.video.clips import BASE, VARIABLE, content, make_clip


def _refused(path) -> str:
    with pytest.raises(SwapfastError) as caught:
        list(VideoReader(path))
    assert "\n" not in str(caught.value) and caught.value.code == 2
    return str(caught.value)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", sound="aac")


def test_facts(clip):
    info = probe(clip)
    assert (info.codec, info.pix_fmt, info.size, info.rotation) == ("h264", "yuv420p", (66, 50), 0)
    assert info.time_base == BASE and [kind for _, kind, _ in info.copied] == ["audio"]
    assert info.duration_s == pytest.approx((VARIABLE[19] - VARIABLE[0]) / 90000, abs=0.1)


def test_an_empty_file(tmp_path):
    (tmp_path / "v.mp4").touch()
    assert "is empty" in _refused(tmp_path / "v.mp4")


def test_text_named_as_a_video(tmp_path):
    (tmp_path / "v.mkv").write_text("hello\n" * 100)
    assert "is no video" in _refused(tmp_path / "v.mkv")


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\nclip.mp4\n", "ffconcat version 1.0\nfile clip.mp4\n"])
def test_a_list_of_other_files(tmp_path, clip, text):
    """A playlist named as a video reads nothing else."""
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "v.mp4").write_text(text)
    assert "is no video" in _refused(tmp_path / "v.mp4")


def test_a_missing_file(tmp_path):
    assert "No such file" in _refused(tmp_path / "v.mp4")


def test_a_folder(tmp_path):
    assert "cannot be read" in _refused(tmp_path)


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "v.mp4")
    assert "a pipe or a device" in _refused(tmp_path / "v.mp4")


def test_an_mp4_without_its_index(tmp_path, clip):
    data = clip.read_bytes()
    (tmp_path / "v.mp4").write_bytes(data[: data.index(b"moov") - 4])
    assert "has no index (moov)" in _refused(tmp_path / "v.mp4")


@pytest.mark.slow
def test_a_cut_mkv_gives_what_is_there_and_says_so(tmp_path):
    whole = make_clip(tmp_path / "whole.mkv", tuple(range(0, 60 * 9000, 9000)), options={"g": "5", "bf": "0"})
    (tmp_path / "v.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    reader = VideoReader(tmp_path / "v.mkv")
    assert 10 < len(list(reader)) < 60
    assert any("is it cut off?" in note for note in reader.notes()) or reader.damaged


def test_damaged_packets_are_counted(tmp_path):
    whole = make_clip(tmp_path / "whole.mkv", VARIABLE, codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    (tmp_path / "v.mkv").write_bytes(data)
    reader = VideoReader(tmp_path / "v.mkv")
    stamps = [frame.pts for frame in reader]
    assert 5 < len(stamps) <= 40 and stamps == sorted(set(stamps))


def test_sound_alone(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as target:
        stream = target.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    assert "holds no pictures, only audio" in _refused(tmp_path / "v.mp4")


def test_no_frame_at_all(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        target.start_encoding()
    assert "holds nothing" in _refused(tmp_path / "v.mp4")


def test_no_frame_that_can_be_decoded(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        target.start_encoding()
        packet = av.Packet(bytes(200))
        packet.pts = packet.dts = 0
        packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 25), True, stream
        target.mux(packet)
    assert "no frame can be decoded" in _refused(tmp_path / "v.mp4")


def test_frames_have_index_time_and_upright_pixels(tmp_path):
    """A phone's clip: stored lying, shown upright; points of the stored picture go where their pixels go."""
    reader = VideoReader(make_clip(tmp_path / "v.mp4", codec="libx264", options={"qp": "0"}, rotation=90))
    frames = list(reader)
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.pts for frame in frames] == list(VARIABLE[:20])
    assert reader.info.rotation == 90 and reader.info.size == (50, 66)
    upright, stored = frames[3].pixels(), frames[3].conversion.to_pixels(frames[3].planes)
    assert upright.shape == (66, 50, 3) and stored.shape == (50, 66, 3)
    for x, y in ((0, 0), (65, 0), (20, 13), (7, 49)):
        shown_x, shown_y = upright_points(np.array([x, y]), reader.info).astype(int)
        np.testing.assert_array_equal(upright[shown_y, shown_x], stored[y, x])


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_upright_is_what_players_show(tmp_path, rotation):
    """OpenCV's own reader turns a clip by itself."""
    import cv2

    path = make_clip(tmp_path / "v.mp4", VARIABLE[:3], rotation=rotation)
    ours = next(iter(VideoReader(path))).pixels()
    theirs = cv2.VideoCapture(str(path)).read()[1]
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 12  # it converts chroma more coarsely; a wrong turn gives over 40


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_part_of_a_turned_frame_is_that_of_the_whole(rotation):
    """There, and back into the stored planes."""
    rng = np.random.default_rng(rotation)
    planes = [rng.integers(0, 256, size).astype(np.uint8) for size in ((50, 66), (25, 33), (25, 33))]
    conversion = Conversion(working_format("yuv420p"), ColourTags(1, 1), 50)
    frame = VideoFrame(0, 0, 0, Fraction(1), planes, conversion, rotation)
    box, inside = (10, 21, 31, 40), (slice(21, 40), slice(10, 31))
    whole, part = frame.pixels(), frame.pixels(box)
    np.testing.assert_array_equal(part[inside], whole[inside])
    assert np.count_nonzero(part) == np.count_nonzero(part[inside])
    new, new_part = whole.copy(), part.copy()
    new[inside] = new_part[inside] = 255 - whole[inside]
    for old in (part, None):
        for one, other in zip(frame.changed(new, whole), frame.changed(new_part, old, box), strict=True):
            np.testing.assert_array_equal(one, other)


def test_time_stamps_of_a_bare_stream(tmp_path):
    with av.open(str(tmp_path / "v.h264"), "w", format="h264") as target:
        stream = target.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    stamps = [frame.pts for frame in VideoReader(tmp_path / "v.h264")]
    assert len(stamps) == 5 and stamps == sorted(set(stamps))


def test_deep_video_has_deep_pixels(tmp_path):
    path = make_clip(tmp_path / "v.mkv", VARIABLE[:3], codec="ffv1", pix_fmt="yuv420p10le")
    frame = next(iter(VideoReader(path)))
    assert frame.pixels().dtype == np.uint16 and content(path).stream["pix_fmt"] == "yuv420p10le"


def test_a_cut_is_found_in_deep_and_plain_video(tmp_path):
    """Two scenes of one gray each, with noise; the number of the second one's first frame."""
    for name, codec, pix_fmt in (("a.mkv", "ffv1", "yuv420p10le"), ("b.mp4", "libx264", "yuv420p")):
        with av.open(str(tmp_path / name), "w") as target:
            stream = target.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
            for number in range(12):
                level = 60 if number < 7 else 130
                image = np.random.default_rng(number).integers(level, level + 20, (64, 64, 3), np.uint8)
                target.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            target.mux(stream.encode(None))
        finder = CutFinder()
        assert len(list(finder.watch(VideoReader(tmp_path / name)))) == 12
        assert finder.cuts == [7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("a.mp4", "libx264", "yuv420p"), ("b.mkv", "ffv1", "yuv420p10le")]
)
def test_random_bytes_give_frames_or_one_line(tmp_path, name, codec, pix_fmt):
    rng = np.random.default_rng(3)
    whole = make_clip(tmp_path / name, VARIABLE[:8], codec=codec, pix_fmt=pix_fmt, sound="aac").read_bytes()
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.choice([1, 20, 200])):
            data[place] = rng.integers(256)
        for place in rng.integers(0, 600, rng.choice([0, 5])):
            data[place] = rng.integers(256)
        del data[len(data) - rng.choice([0, 0, 3000]) :]
        (tmp_path / f"v{name}").write_bytes(data)
        try:
            outcomes.add(len([frame.pixels() for frame in VideoReader(tmp_path / f"v{name}")]) > 0)
        except SwapfastError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes >= {True, "refused"}
