"""A written video has its source's time stamps, sound, subtitles and tags, and the pixels it was given."""

from __future__ import annotations

import itertools
import resource
from fractions import Fraction

import av
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.video.encoding import EncodeSettings
from swapfast.video.probe import HdrMetadata
from swapfast.video.reader import VideoReader
from swapfast.video.writer import SYNTHETIC, VideoWriter, decoding_times
from tests.video.clips import VARIABLE, content, make_clip

LOSSLESS = EncodeSettings("lossless")
TEXTS = {"comment": "holiday", "title": "sea", "creation_time": "2024-05-06T07:08:09.000000Z"}


def _copy(source, out, settings=LOSSLESS, change=None, segment_frames=7, request=None) -> VideoReader:
    """Write a video anew, every frame through ``change``."""
    reader = VideoReader(source)
    with VideoWriter(reader, out, settings, request, segment_frames=segment_frames) as writer:
        for frame in reader.frames(writer.frames_done):
            writer.write(frame, change(frame.pixels()) if change else None)
        writer.finish()
    return reader


def _invert_box(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.copy()
    pixels[10:20, 10:30, :3] = np.iinfo(pixels.dtype).max - pixels[10:20, 10:30, :3]
    return pixels


def _left_behind(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_lossless_gives_the_same_pixels_times_and_sound(tmp_path, suffix):
    """A variable rate, B frames, and sound that begins before zero, as AAC does."""
    source = make_clip(tmp_path / f"in{suffix}", sound="aac", options={"bf": "3", "b_strategy": "0"})
    _copy(source, tmp_path / f"out{suffix}")
    before, after = content(source), content(tmp_path / f"out{suffix}")
    assert before.stamps == after.stamps and before.planes == after.planes
    assert before.packets == after.packets and len(before.packets[1]) > 20
    assert before.packets[1][0][0] < 0  # sound begins before zero
    assert before.duration == after.duration
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in{suffix}", f"out{suffix}"]


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "suffix"), [("x264", ".mp4"), ("x265", ".mkv"), ("prores", ".mov")])
def test_times_and_sound_stay_with_every_codec(tmp_path, codec, suffix, at_least):
    source = make_clip(tmp_path / f"in{suffix}", sound="aac", options={"crf": "12"})
    _copy(source, tmp_path / f"out{suffix}", EncodeSettings(codec, crf=10, preset="fast"))
    before, after = content(source), content(tmp_path / f"out{suffix}")
    assert before.stamps == after.stamps and before.packets == after.packets
    assert abs(before.duration - after.duration) <= (0 if suffix != ".mkv" else 1000)  # Matroska counts milliseconds
    luma = [[np.frombuffer(c.planes[n][0], np.uint8) for n in (0, 12)] for c in (before, after)]
    if codec != "prores":
        error = np.mean((np.array(luma[0], float) - luma[1]) ** 2)
        at_least(f"{codec} crf 10", 10 * np.log10(255**2 / error), 38)  # dB; 10 to 20 more than crf 35 gives
    assert after.stream["codec"] == {"x264": "h264", "x265": "hevc", "prores": "prores"}[codec]


@pytest.mark.slow
def test_an_mp4_becomes_an_mkv_and_back(tmp_path):
    """Matroska counts milliseconds, and knows no sound before zero: all moves by the same time."""
    source = make_clip(tmp_path / "in.mp4", sound="aac")
    _copy(source, tmp_path / "out.mkv")
    _copy(tmp_path / "out.mkv", tmp_path / "back.mp4")
    before, after, back = (content(tmp_path / name) for name in ("in.mp4", "out.mkv", "back.mp4"))
    moves = {round(1000 * (b - a)) for a, b in zip(before.stamps, after.stamps, strict=True)}
    assert len(moves) == 1 and max(moves) in (21, 22)
    assert after.stamps == back.stamps and before.planes == back.planes
    hashes = [[packet[3] for packet in c.packets[1]] for c in (before, after, back)]
    assert hashes[0] == hashes[1] == hashes[2]


def test_a_late_start_and_several_tracks_stay(tmp_path):
    source = make_clip(tmp_path / "in.mkv", tuple(90000 + t for t in VARIABLE[:9]), sound="flac", subtitles=True)
    reader = _copy(source, tmp_path / "out.mkv")
    before, after = content(source), content(tmp_path / "out.mkv")
    assert before.stamps == after.stamps and before.stamps[0] > 1
    assert before.packets == after.packets and sorted(after.packets) == [1, 2]
    assert [kind for _, kind, _ in reader.info.copied] == ["audio", "subtitle"]


def test_subtitles_that_mp4_cannot_hold_are_named(tmp_path):
    reader = VideoReader(make_clip(tmp_path / "in.mkv", subtitles=True, sound="aac"))
    with VideoWriter(reader, tmp_path / "out.mp4") as writer:
        assert writer.left_out == (2,)


def test_pictures_before_zero_begin_at_zero(tmp_path):
    """Of a video whose edit list is gone, and of NUT: no container shows them. Sound moves along."""
    assert decoding_times(np.array([-90, 60, 10]))[0] < -90
    stamps = tuple(t - 9000 for t in VARIABLE[:12])
    source = make_clip(tmp_path / "in.nut", stamps, codec="ffv1")
    first = content(source).stamps[0]
    _copy(source, tmp_path / "out.mp4")
    after = content(tmp_path / "out.mp4").stamps
    assert np.diff(after).tolist() == [Fraction(b - a, 90000) for a, b in itertools.pairwise(stamps)]
    assert after[0] >= 0 and (first < 0 or after[0] == first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tags", [(1, 1, 1, 1), (6, 1, 6, 6), (5, 2, 5, 6), (9, 1, 9, 16)], ids=["709", "601", "full", "2020 PQ"]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_colour_tags_stay_and_colours_with_them(tmp_path, tags, suffix):
    source = make_clip(tmp_path / f"in{suffix}", VARIABLE[:4], tags=tags, options={"qp": "0"})
    _copy(source, tmp_path / f"out{suffix}", change=_invert_box)
    before, after = content(source), content(tmp_path / f"out{suffix}")
    assert after.stream["tags"] == tags == before.stream["tags"]
    old, new = (next(iter(VideoReader(tmp_path / f"{name}{suffix}"))).pixels() for name in ("in", "out"))
    outside = np.ones(old.shape[:2], bool)
    outside[8:22, 8:32] = False  # chroma samples of the box reach one pixel further
    np.testing.assert_array_equal(old[outside], new[outside])
    inner = (slice(12, 18), slice(12, 28))
    # Inverted, saturated colours leave the gamut; elsewhere rounding of luma and chroma is up to two levels.
    assert np.median(np.abs(255 - old[inner].astype(int) - new[inner])) <= 2


def test_ten_bits_stay(tmp_path):
    source = make_clip(tmp_path / "in.mkv", VARIABLE[:6], codec="ffv1", pix_fmt="yuv420p10le", tags=(9, 1, 9, 16))
    _copy(source, tmp_path / "out.mkv")
    assert content(source).planes == content(tmp_path / "out.mkv").planes
    _copy(source, tmp_path / "out.mp4", EncodeSettings(preset="ultrafast"))
    after = content(tmp_path / "out.mp4").stream
    assert (after["codec"], after["pix_fmt"], after["tags"]) == ("hevc", "yuv420p10le", (9, 1, 9, 16))


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "suffix"), [("x265", ".mp4"), ("x264", ".mkv"), ("lossless", ".mp4")])
def test_hdr10_metadata_stays(tmp_path, codec, suffix):
    """Also in the second of two segments, which begins with a key frame of its own."""
    display = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    params = {"x265-params": f"log-level=error:{display}:max-cll=1000,400", "preset": "ultrafast"}
    stamps = tuple(3600 * n for n in range(6))
    source = make_clip(tmp_path / "v.mp4", stamps, "libx265", "yuv420p10le", (128, 96), params, tags=(9, 1, 9, 16))
    expected = HdrMetadata((34000, 16000, 13250, 34500, 7500, 3000, 15635, 16450, 10000000, 50), (1000, 400))
    assert VideoReader(source).info.hdr == expected
    out = tmp_path / f"o{suffix}"
    _copy(source, out, EncodeSettings(codec, preset="ultrafast"), segment_frames=3)
    assert VideoReader(out).info.hdr == expected
    with av.open(str(out)) as made:
        kept = [frame.side_data.get("CONTENT_LIGHT_LEVEL") is not None for frame in made.decode(video=0)]
    assert len(kept) == 6 and kept[0] and kept[3]


@pytest.mark.slow
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_phone_clip_stays_turned(tmp_path, rotation):
    """Pixels outside the box are equal in place, so it is written turned back."""
    source = make_clip(tmp_path / "in.mp4", VARIABLE[:4], rotation=rotation)
    _copy(source, tmp_path / "out.mp4", change=_invert_box)
    readers = [VideoReader(tmp_path / name) for name in ("in.mp4", "out.mp4")]
    assert readers[0].info.display_matrix == readers[1].info.display_matrix
    assert readers[1].info.rotation == rotation
    old, new = (next(iter(reader)).pixels() for reader in readers)
    changed = (old != new).any(-1)
    assert changed[10:20, 10:30].mean() > 0.9
    changed[8:22, 8:32] = False
    assert not changed.any()


@pytest.mark.slow
@pytest.mark.parametrize(("pix_fmt", "size"), [("yuv420p", (65, 51)), ("yuv422p", (63, 50))])
def test_odd_sizes_are_not_scaled(tmp_path, pix_fmt, size):
    source = make_clip(tmp_path / "in.mkv", VARIABLE[:4], codec="ffv1", pix_fmt=pix_fmt, size=size)
    _copy(source, tmp_path / "out.mkv")
    _copy(source, tmp_path / "out.mp4", EncodeSettings("x264", crf=1, preset="ultrafast"))
    before, exact, coded = (content(tmp_path / name) for name in ("in.mkv", "out.mkv", "out.mp4"))
    assert before.planes == exact.planes
    assert coded.stream["size"] == size and coded.stream["pix_fmt"] == "yuv444p"
    first, last = (np.frombuffer(c.planes[0][0], np.uint8).astype(int) for c in (before, coded))
    assert np.abs(first - last).mean() < 2  # crf 1; scaled, the gradient alone would be off by more at the square


def test_an_odd_size_without_a_lossless_form_is_refused(tmp_path):
    source = make_clip(tmp_path / "in.mkv", VARIABLE[:2], codec="ffv1", size=(65, 51))
    with pytest.raises(SwapfastError, match=r"give -o out\.mkv --codec lossless"):
        VideoWriter(VideoReader(source), tmp_path / "out.mp4", LOSSLESS)


@pytest.mark.parametrize(("codec", "pix_fmt", "suffix"), [("ffv1", "yuva420p", ".mkv"), ("qtrle", "argb", ".mov")])
def test_alpha_stays(tmp_path, codec, pix_fmt, suffix):
    source = make_clip(tmp_path / f"in{suffix}", VARIABLE[:3], codec=codec, pix_fmt=pix_fmt)
    reader = _copy(source, tmp_path / "out.mkv", EncodeSettings(), _invert_box)
    old, new = next(iter(reader)).pixels(), next(iter(VideoReader(tmp_path / "out.mkv"))).pixels()
    assert old.shape[2] == new.shape[2] == 4
    np.testing.assert_array_equal(old[..., 3], new[..., 3])
    np.testing.assert_array_equal(old[25:], new[25:])
    with pytest.raises(SwapfastError, match=r"has an alpha channel, which libx264 cannot hold; give -o out\.mkv"):
        VideoWriter(reader, tmp_path / "out.mp4")


def test_rgb_becomes_tagged_yuv(tmp_path, within):
    """A screen recording in RGB: x264 has it as BT.709 at full resolution, said in its tags."""
    source = make_clip(tmp_path / "in.mkv", VARIABLE[:3], codec="ffv1", pix_fmt="bgr0")
    reader = _copy(source, tmp_path / "out.mp4", EncodeSettings("x264", crf=1, preset="ultrafast"))
    after = content(tmp_path / "out.mp4").stream
    assert after["pix_fmt"] == "yuv444p" and after["tags"][:2] == (1, 1)
    old, new = next(iter(reader)).pixels(), next(iter(VideoReader(tmp_path / "out.mp4"))).pixels()
    within("mean error in levels", np.abs(old.astype(int) - new).mean(), 2)  # crf 1 and 8-bit chroma; 601 would be 6


@pytest.mark.long
def test_a_run_that_stopped_goes_on_to_the_same_bytes(tmp_path):
    """Stopped after each number of frames: the video is that of a run that never stopped."""
    source = make_clip(tmp_path / "in.mp4", sound="aac")
    settings = EncodeSettings("x264", preset="ultrafast")
    _copy(source, tmp_path / "whole.mp4", settings, _invert_box)
    whole = (tmp_path / "whole.mp4").read_bytes()
    for stop in (0, 3, 7, 13, 14, 20):
        reader, out = VideoReader(source), tmp_path / f"{stop}.mp4"
        writer = VideoWriter(reader, out, settings, segment_frames=7)
        for frame in reader:
            if frame.index == stop:
                break
            writer.write(frame, _invert_box(frame.pixels()))
        writer.close()
        assert not out.exists()
        with VideoWriter(reader, out, settings, segment_frames=7) as writer:
            assert writer.frames_done == stop // 7 * 7
        _copy(source, out, settings, _invert_box)
        assert out.read_bytes() == whole, stop
    assert _left_behind(tmp_path) == []


@pytest.mark.slow
def test_damaged_and_foreign_segments_are_made_anew(tmp_path):
    source = make_clip(tmp_path / "in.mp4", VARIABLE[:20])
    out, folder = tmp_path / "out.mkv", tmp_path / ".out.mkv.segments"
    reader = VideoReader(source)

    def begin(request=None):
        with VideoWriter(reader, out, LOSSLESS, request, segment_frames=5) as writer:
            for frame in reader.frames(writer.frames_done):
                writer.write(frame)
        return sorted(folder.glob("*.segment"))

    segments = begin()
    assert [path.name for path in segments] == [f"{n:09d}.segment" for n in (0, 5, 10, 15)]
    (folder / ".writing-000-000000020.segment").write_bytes(b"cut")
    data = segments[2].read_bytes()
    segments[2].write_bytes(data[:-9])
    with VideoWriter(reader, out, LOSSLESS, segment_frames=5) as writer:
        assert writer.frames_done == 10
    assert len(list(folder.iterdir())) == 4  # two segments, the request, the lock
    with VideoWriter(reader, out, LOSSLESS, {"erosion": 5}, segment_frames=5) as writer:  # another request
        assert writer.frames_done == 0
    _copy(source, out, segment_frames=5)
    assert content(out).planes == content(source).planes and _left_behind(tmp_path) == []


def test_two_runs_do_not_write_the_same_video(tmp_path, monkeypatch):
    """Locks are the process's own, so another process' is played by one that answers held."""
    from swapfast import work_folder

    reader = VideoReader(make_clip(tmp_path / "in.mp4", VARIABLE[:3]))
    monkeypatch.setattr(work_folder, "try_lock", lambda file: False)
    with pytest.raises(SwapfastError, match="another run is writing it"):
        VideoWriter(reader, tmp_path / "out.mp4")


def test_it_says_that_it_is_synthetic(tmp_path):
    source = make_clip(tmp_path / "in.mp4", VARIABLE[:3], metadata=TEXTS)
    for suffix in (".mp4", ".mkv"):
        _copy(source, tmp_path / f"out{suffix}")
        found = {key.lower(): text for key, text in content(tmp_path / f"out{suffix}").metadata.items()}
        assert found["comment"] == f"{SYNTHETIC}; holiday" and found["title"] == "sea"
        assert found["creation_time"] == TEXTS["creation_time"]


def test_the_source_is_not_overwritten(tmp_path):
    source = make_clip(tmp_path / "in.mp4", VARIABLE[:3])
    (tmp_path / "link.mp4").symlink_to(source)
    for name in ("in.mp4", "link.mp4"):
        with pytest.raises(SwapfastError, match="is the video that is read"):
            VideoWriter(VideoReader(source), tmp_path / name)


def test_wrong_requests_are_refused_before_anything_is_written(tmp_path):
    source = make_clip(tmp_path / "in.mkv", VARIABLE[:3], sound="pcm_s16le")
    reader = VideoReader(source)
    cases = [
        ("out.webm", {}, "ends in .mp4, .m4v, .mov, .mkv"),
        ("out.mp4", {"codec": "prores"}, ".mp4 cannot hold it; give -o out.mov"),
        ("out.mkv", {"codec": "nvenc"}, "it needs a graphics card"),
        ("missing/out.mkv", {}, "cannot be written"),
    ]
    for name, settings, message in cases:
        with pytest.raises(SwapfastError, match=message):
            VideoWriter(reader, tmp_path / name, EncodeSettings(**settings))
    for settings, message in (
        ({"codec": "x266"}, "unknown --codec"),
        ({"crf": 52}, "--crf 52"),
        ({"preset": "x"}, "unknown --encoder-preset"),
    ):
        with pytest.raises(SwapfastError, match=message):
            EncodeSettings(**settings)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_a_full_disk_is_one_line_and_the_segments_stay(tmp_path):
    """The limit of a file's size answers as a full disk does."""
    source = make_clip(tmp_path / "in.mp4", VARIABLE[:20], options={"qp": "0"})
    reader, out = VideoReader(source), tmp_path / "out.mkv"
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VideoWriter(reader, out, LOSSLESS, segment_frames=4) as writer:
        frames = list(reader)
        for frame in frames:
            writer.write(frame)
        largest = max(path.stat().st_size for path in (tmp_path / ".out.mkv.segments").iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 100, former[1]))
        try:
            with pytest.raises(SwapfastError, match="the disk is full") as caught:
                writer.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert caught.value.code == 1 and not out.exists()
    assert _left_behind(tmp_path) == [".out.mkv.segments"]
    with VideoWriter(reader, out, LOSSLESS, segment_frames=4) as writer:
        assert writer.frames_done == 20
        writer.finish()
    assert content(out).planes == content(source).planes


def test_decoding_times_fit_any_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        stamps = np.sort(rng.choice(10000, 30, replace=False) - 3000)
        order = np.argsort(np.arange(30) + rng.uniform(0, 5, 30))
        times = decoding_times(stamps[order])
        assert (np.diff(times) > 0).all()
        assert (times <= stamps[order]).all()


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path):
    """x264 reads memory that nobody has written: what pads rows, and with AVX-512 beyond few macroblocks."""
    source = make_clip(tmp_path / "in.mp4", VARIABLE, size=(96, 96))
    reader, rng, found = VideoReader(source), np.random.default_rng(1), set()
    for number in range(6):
        junk = [rng.integers(0, 256, int(size), np.uint8) for size in rng.integers(1000, 400_000, 50)]
        del junk
        out = tmp_path / f"{number}.mkv"
        with VideoWriter(reader, out, segment_frames=20) as writer:
            for frame in reader:
                writer.write(frame, np.roll(frame.pixels(), 3, axis=1))
            writer.finish()
        found.add(out.read_bytes())
    assert len(found) == 1
