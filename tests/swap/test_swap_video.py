"""`swapfast swap` on videos, the whole way: what stays, what is written, going on, and requests that cannot be met."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import cli
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.video.film import draw_film, write_video
from swapfast.video.reader import VideoReader
from tests.swap.test_swap_command import save_model
from tests.video.clips import content, make_clip

FRAMES, SIZE = 12, 96


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Half a second of a drawn head, with landmarks beside it."""
    folder = tmp_path_factory.mktemp("film") / "film"
    assert draw_film(folder, FRAMES / 25, SIZE) == FRAMES
    return folder


def swap(*arguments: object) -> int:
    return cli.main(["swap", *map(str, arguments)])


def pixels_of(path: Path) -> list[np.ndarray]:
    return [frame.pixels() for frame in VideoReader(path)]


def refused(capsys, *arguments: object) -> str:
    assert swap(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.slow
def test_faces_change_and_the_rest_stays_to_the_bit(film, model, tmp_path, capsys):
    out = tmp_path / "out.mkv"
    assert swap("-m", model, "-i", film / "a.mp4", "-o", out, "--codec", "lossless", "--write-mask") == 0
    assert "12 faces swapped in 12 frames" in capsys.readouterr().out
    before, after, masks = (content(path) for path in (film / "a.mp4", out, tmp_path / "out.mask.mkv"))
    assert before.stamps == after.stamps == masks.stamps
    for old, new, mask in zip(before.frames, after.frames, masks.frames, strict=True):
        alpha = mask.to_ndarray() > 0
        luma = [frame.to_ndarray()[:SIZE] for frame in (old, new)]
        assert 0.05 < alpha.mean() < 0.6
        assert (luma[0] == luma[1])[~alpha].all()
        assert (luma[0] != luma[1])[alpha].mean() > 0.5
    manifest = json.loads((tmp_path / "out.mkv.json").read_text())
    assert manifest["state"] == "finished" and set(manifest["files"]) == {"out.mkv"}
    assert "compositeWithTrainedAlgorithmicMedia" in after.metadata["COMMENT"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mask.mkv", "out.mkv", "out.mkv.json"]


@pytest.mark.slow
def test_the_report_has_flicker_and_jitter(film, model, tmp_path):
    report = tmp_path / "report.json"
    assert swap("-m", model, "-i", film / "a.mp4", "-o", tmp_path / "out.mp4", "--report", report) == 0
    found = json.loads(report.read_text())["video"]
    assert (found["frames"], found["scenes"], found["tracks"], found["encoder"]) == (FRAMES, 1, 1, "libx264")
    assert found["triples"] == FRAMES - 2 and set(found["flicker"]) == {"source", "swapped", "difference"}
    assert 0 <= found["jitter"]["face"] < 5


@pytest.mark.slow
def test_a_check_writes_nothing(film, model, tmp_path, capsys):
    assert swap("-m", model, "-i", film / "a.mp4", "--check", "-R", "3-5") == 0
    said = capsys.readouterr().out
    assert "3 faces in 3 of 3 frames" in said and "the model makes 64" in said and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ranges_cut_a_video_or_leave_frames_as_they_are(film, model, tmp_path):
    """Frames count from 1. Cut out, they begin at zero."""
    for name, flags in (("kept.mkv", ["-k"]), ("cut.mkv", [])):
        flags += ["-R", "4-6", "--codec", "lossless"]
        assert swap("-m", model, "-i", film / "a.mp4", "-o", tmp_path / name, *flags) == 0
    source, kept, cut = (content(path) for path in (film / "a.mp4", tmp_path / "kept.mkv", tmp_path / "cut.mkv"))
    assert [a == b for a, b in zip(source.planes, kept.planes, strict=True)] == [True] * 3 + [False] * 3 + [True] * 6
    assert cut.planes == kept.planes[3:6]
    assert cut.stamps == [stamp - source.stamps[3] for stamp in source.stamps[3:6]]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(film, model, tmp_path, capsys, monkeypatch):
    """Stopped by a full disk after two segments; colours are smoothed over the frames before where it goes on."""
    flags = ["-m", model, "-i", film / "a.mp4", "--segment", 4, "--smooth", 3]
    assert swap(*flags, "-o", tmp_path / "whole.mp4") == 0
    from swapfast.video.segments import Segment

    real = Segment.finish

    def full(self) -> None:
        if self._path.name.startswith("000000008"):
            raise OSError(28, "No space left on device")
        real(self)

    monkeypatch.setattr(Segment, "finish", full)
    out = tmp_path / "out.mp4"
    assert swap(*flags, "-o", out) == 1
    assert "the disk is full); free space or give another -o" in capsys.readouterr().err and not out.exists()
    monkeypatch.undo()
    assert len(list((tmp_path / ".out.mp4.segments").glob("*.segment"))) == 2
    assert swap(*flags, "-o", out, "--report", tmp_path / "r.json") == 0
    assert json.loads((tmp_path / "r.json").read_text())["frames_written_before"] == 8
    assert "4 faces swapped in 4 frames" in (said := capsys.readouterr().out) and "8 more frames" in said
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ["shown", "stored"])
def test_a_phone_clip_takes_landmarks_of_either_picture(film, model, tmp_path, orientation):
    """The same face, stored lying: it is found where it is, and what lies outside of it stays."""
    upright = pixels_of(film / "a.mp4")[0]
    source = tmp_path / "phone.mp4"
    make_lying_clip(source, np.rot90(upright, 1))
    lines = (film / "a.jsonl").read_text().splitlines()
    shown = np.array(json.loads(lines[1])["landmarks"])
    points = shown if orientation == "shown" else np.stack([shown[:, 1], SIZE - 1 - shown[:, 0]], axis=1)
    text = [header_line("phone.mp4", 2, (SIZE, SIZE), orientation), *(landmark_line(points, frame=i) for i in (0, 1))]
    (tmp_path / "phone.jsonl").write_text("\n".join(text) + "\n")
    assert swap("-m", model, "-i", source, "-o", tmp_path / "out.mp4", "--codec", "lossless") == 0
    old, new = pixels_of(source)[0], pixels_of(tmp_path / "out.mp4")[0]
    assert VideoReader(tmp_path / "out.mp4").info.rotation == 270
    changed = (old != new).any(-1)
    rows, columns = np.nonzero(changed)
    low, high = shown.min(0) - 12, shown.max(0) + 12
    assert low[0] <= columns.min() and columns.max() <= high[0]
    assert low[1] - 16 <= rows.min() and rows.max() <= high[1]  # the forehead is above the landmarks
    assert changed.mean() > 0.05


def make_lying_clip(path: Path, picture: np.ndarray) -> None:
    from tests.video import clips

    former = clips.picture
    clips.picture = lambda number, width, height: picture
    try:
        make_clip(path, (0, 3600), options={"qp": "0"}, size=(SIZE, SIZE), rotation=270)
    finally:
        clips.picture = former


@pytest.mark.long
def test_ten_bits_and_another_size(film, model, tmp_path):
    source = tmp_path / "a.mkv"
    make_clip(source, tuple(3600 * n for n in range(3)), codec="ffv1", pix_fmt="yuv420p10le", size=(SIZE, SIZE))
    (tmp_path / "a.jsonl").write_text("\n".join((film / "a.jsonl").read_text().splitlines()[1:4]).join([HEADER, "\n"]))
    assert swap("-m", model, "-i", source, "-o", tmp_path / "b.mkv", "--encoder-preset", "ultrafast") == 0
    assert content(tmp_path / "b.mkv").stream["pix_fmt"] == "yuv420p10le"
    flags = ["-O", 50, "--codec", "lossless"]
    assert swap("-m", model, "-i", source, "-o", tmp_path / "c.mkv", *flags) == 0
    assert content(tmp_path / "c.mkv").stream["size"] == (48, 48)


HEADER = header_line("a.mkv", size=(SIZE, SIZE)) + "\n"


@pytest.mark.slow
def test_faces_alone_on_nothing(film, model, tmp_path):
    out = tmp_path / "out.mkv"
    assert swap("-m", model, "-i", film / "a.mp4", "-o", out, "--transparent", "-R", "1-2") == 0
    pixels = pixels_of(out)
    assert pixels[0].shape == (SIZE, SIZE, 4) and pixels[0][0, 0, 3] == 0 and pixels[0][..., 3].max() == 255


@pytest.mark.slow
def test_requests_that_cannot_be_met(film, model, tmp_path, capsys):
    video = film / "a.mp4"
    bare = tmp_path / "bare.mp4"
    bare.write_bytes(video.read_bytes())
    other = tmp_path / "other.jsonl"
    text = (film / "a.jsonl").read_text()
    other.write_text(text.replace('"frame": 3,', '"frame": 300,'))
    longer = tmp_path / "longer.jsonl"
    longer.write_text(text.replace(f'"frames": {FRAMES}', '"frames": 120'))
    small = tmp_path / "small.jsonl"
    small.write_text(text.replace(f"[{SIZE}, {SIZE}]", "[64, 64]"))
    (tmp_path / "there.mp4").touch()
    base = ["-m", model, "-i"]
    cases = [
        ([*base, bare, "-o", tmp_path / "o.mp4"], "Looked for bare.jsonl beside it"),
        ([*base, bare, "--landmarks", other, "-o", tmp_path / "o.mp4"], "speaks of frame 300, but there are 12"),
        ([*base, bare, "--landmarks", small, "-o", tmp_path / "o.mp4"], "landmarks of a frame of 64x64 px"),
        ([*base, bare, "--landmarks", longer, "-o", tmp_path / "o.mp4"], "is of a video of 120 frames"),
        ([*base, video, "-o", tmp_path / "o.webm"], "ends in .mp4"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--decoder", "dali"], "--decoder: is for pictures"),
        ([*base, video, "-o", tmp_path / "there.mp4"], "is there already"),
        ([*base, video, "-o", video, "--overwrite"], "is the video that is read"),
        ([*base, video, "-o", tmp_path / "no" / "o.mp4"], "there is no folder"),
        ([*base, video, "-o", tmp_path / "o.mp4", "-R", "50-60"], "they are numbered 1 to 12"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--codec", "x266"], "unknown --codec"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--crf", "60"], "--crf 60"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--smooth", "500"], "--smooth 500"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--segment", "0"], "--segment 0"),
        ([*base, video, "-o", tmp_path / "o.mp4", "-w", "patch"], "give -o a folder"),
        ([*base, video, "-o", tmp_path / "folder", "--format", "jpg"], "written as PNG"),
        ([*base, video, "-o", tmp_path / "s.png", "--sheet", "13"], "has frames 1 to 12"),
        ([*base, video, "-o", tmp_path / "s.png", "--sheet", "x.png"], "give the number of a frame"),
        ([*base, film, "-o", tmp_path / "folder", "--smooth", "3"], "is for videos"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--transparent"], "cannot hold"),
        ([*base, tmp_path / "none.mp4", "-o", tmp_path / "o.mp4"], "No such file"),
        ([*base, video, "-o", tmp_path / "o.mp4", "-M", "bisenet-fp_face"], "no such mask"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--report", tmp_path / "no" / "r.json"], "--report"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--report", other], "--report"),
        ([*base, video, "-o", tmp_path / "o.mp4", "--report", tmp_path / "o.mp4.json"], "own manifest"),
    ]
    names = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in cases:
        assert message in refused(capsys, *arguments), message
    assert sorted(path.name for path in tmp_path.iterdir()) == names and "300" in other.read_text()


@pytest.mark.slow
def test_a_folder_takes_frames_and_patches(film, model, tmp_path):
    """The frames are those of a lossless video, to the bit; a part that is gone is made again."""
    frames = tmp_path / "frames"
    flags = ["-m", model, "-i", film / "a.mp4", "-R", "1-5"]
    assert swap(*flags, "-o", frames) == 0
    names = [f"a_{number:06d}.png" for number in range(1, 6)]
    assert sorted(path.name for path in frames.glob("*.png")) == names
    assert swap(*flags, "-k", "-o", tmp_path / "v.mkv", "--codec", "lossless") == 0
    video = pixels_of(tmp_path / "v.mkv")
    first = (frames / names[0]).read_bytes()
    picture = cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(picture.astype(int) - video[0]).mean() < 1.5  # chroma of 4:2:0
    (frames / names[0]).unlink()
    assert swap(*flags, "-o", frames) == 0
    assert (frames / names[0]).read_bytes() == first
    assert swap(*flags, "-w", "patch", "-o", tmp_path / "patches") == 0
    assert len(list((tmp_path / "patches").rglob("*_0.png"))) == 5


@pytest.mark.slow
def test_a_video_of_masks_keeps_what_is_in_front(film, model, tmp_path):
    """Black in the left half: nothing changes there. A video of another size is refused before the swap."""
    half = np.full((SIZE, SIZE, 3), 255, np.uint8)
    half[:, : SIZE // 2] = 0
    write_video(tmp_path / "masks.mp4", iter([half] * FRAMES), SIZE, SIZE)
    write_video(tmp_path / "small.mp4", iter([half[:64, :64]] * FRAMES), 64, 64)
    flags = ["-m", model, "-i", film / "a.mp4", "--codec", "lossless", "-o", tmp_path / "out.mp4"]
    assert swap(*flags, "--mask-dir", tmp_path / "small.mp4") == 2
    assert swap(*flags, "--mask-dir", tmp_path / "masks.mp4") == 0
    for old, new in zip(pixels_of(film / "a.mp4"), pixels_of(tmp_path / "out.mp4"), strict=True):
        changed = (old != new).any(-1)
        assert changed[:, SIZE // 2 + 8 :].any() and not changed[:, : SIZE // 2 - 12].any()


@pytest.mark.slow
def test_a_sheet_of_one_frame(film, model, tmp_path):
    assert swap("-m", model, "-i", film / "a.mp4", "--sheet", 3, "-o", tmp_path / "sheet.png") == 0
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] > 500


@pytest.mark.slow
def test_a_film_by_the_command(tmp_path, capsys):
    """Two people in the same scenes: the backgrounds are equal, the faces are not; landmarks say where they are."""
    assert cli.main(["synthesize", str(tmp_path / "film"), "--film", "0.2", "--size", "64"]) == 0
    assert "5 frames" in capsys.readouterr().out
    a, b = (pixels_of(tmp_path / "film" / f"{name}.mp4") for name in "ab")
    lines = (tmp_path / "film" / "a.jsonl").read_text().splitlines()
    points = np.array([json.loads(line)["landmarks"] for line in lines[1:]])
    assert len(a) == len(b) == len(points) == 5
    assert np.abs(np.diff(points, axis=0)).max() < 4  # px a frame: it moves, and does not leap
    corner = (slice(0, 8), slice(0, 8))
    assert np.abs(a[0][corner].astype(int) - b[0][corner]).mean() < 3 < np.abs(a[0].astype(int) - b[0])[20:44].mean()
    assert cli.main(["synthesize", str(tmp_path / "film"), "--film", "0.2"]) == 2
    assert cli.main(["synthesize", str(tmp_path / "other"), "--film", "0"]) == 2


@pytest.mark.slow
def test_faces_by_the_name_of_their_frame(film, model, tmp_path):
    """As faceswap's headers name the frames of a video, counted from 1; tracks of the file end at a cut."""
    lines = [json.loads(line) for line in (film / "a.jsonl").read_text().splitlines()[1:]]
    named = [landmark_line(t["landmarks"], name=f"a_{t['frame'] + 1:06d}.png", track=7) for t in lines[:8]]
    (tmp_path / "named.jsonl").write_text("\n".join([header_line(), *named]))
    upright = pixels_of(film / "a.mp4")
    dark = [frame // 4 if index >= 4 else frame for index, frame in enumerate(upright)]
    write_video(tmp_path / "a.mp4", iter(dark), SIZE, SIZE)
    report = tmp_path / "report.json"
    flags = ["--landmarks", tmp_path / "named.jsonl", "--report", report]
    assert swap("-m", model, "-i", tmp_path / "a.mp4", "-o", tmp_path / "out.mp4", *flags) == 0
    found = json.loads(report.read_text())
    assert (found["faces"], found["frames_without_faces"]) == (8, 4)
    assert (found["video"]["scenes"], found["video"]["tracks"]) == (2, 2)


@pytest.mark.slow
def test_clips_have_sound_and_another_film_of_the_second_person(tmp_path, within):
    assert draw_film(tmp_path / "clips", 0.4, 64, clips=True) == 10
    files = {path.name for path in (tmp_path / "clips").iterdir()}
    assert files == {"a.mp4", "a.jsonl", "b.mp4", "person_b.mp4", "person_b.jsonl"}
    for name in ("a", "b", "person_b"):
        with av.open(str(tmp_path / "clips" / f"{name}.mp4")) as clip:
            assert [stream.type for stream in clip.streams] == ["video", "audio"]
            seconds = sum(frame.samples for frame in clip.decode(audio=0)) / 48000
        within(f"{name}: length of the sound, s", abs(seconds - 0.4), 2 * 1024 / 48000)  # AAC's first and last frames
    assert len((tmp_path / "clips" / "person_b.jsonl").read_text().splitlines()) == 11
