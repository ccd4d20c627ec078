"""Frames on their way: the model waits for neither side, and a longer video holds no more of them."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.models import FaceAutoencoder
from swapfast.swap.found_faces import FacesOfFrame
from swapfast.swap.frames import Frame, FrameFace, SwappedFrame
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.swap.pipeline import GROUP, SwapPipeline
from swapfast.swap.request import SwapRequest
from swapfast.swap.run_video import VideoSettings, plan_video, swap_video
from swapfast.swap.smoothing import ColourSmoother
from swapfast.swap.stages import Stopwatch
from swapfast.swap.swapper import FrameSwapper
from swapfast.threads import ThreadPool
from swapfast.video.film import write_video
from swapfast.video.reader import VideoFrame
from tests.swap.echo import drawn_face, echo
from tests.swap.test_swap_command import save_model

SIZE, WORKERS = 64, 2
FACE = drawn_face(0, SIZE)
PATIENCE_S = 60.0


class Frames:
    """So many frames with the same face, and how many of them live at most."""

    def __init__(self, count: int) -> None:
        self.count, self.most = count, 0
        self._living: weakref.WeakSet[Frame] = weakref.WeakSet()

    def __iter__(self):
        for index in range(self.count):
            frame = Frame(f"{index}.png", index, index / 25, FACE.image.copy())
            self._living.add(frame)
            self.most = max(self.most, len(self._living))
            yield frame


class Written(list[int]):
    """The indices of frames, as they come. is_one_group: set when the first group is written.

    But for its last ones, which lie between two stages until others come behind them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_one_group, self.is_closed = threading.Event(), False

    def write(self, swapped: SwappedFrame) -> None:
        self.append(swapped.frame.index)
        if len(self) == GROUP - 2 * (WORKERS + 1):
            self.is_one_group.set()

    def close(self) -> None:
        self.is_closed = True


def go_through(frames: Frames, written: Written, model: FaceAutoencoder, smooth: int = 0) -> Stopwatch:
    face, clock = FrameFace.from_landmarks(FACE.landmarks, track=0), Stopwatch()
    with ThreadPool(WORKERS) as pool:
        swapper, smoother = FrameSwapper(model, CropConfig()), ColourSmoother(smooth) if smooth else None

        def find(frame: Frame) -> FacesOfFrame:
            return FacesOfFrame([face], [])

        pipeline = SwapPipeline(swapper, find, pool, WORKERS + 1, smoother=smoother, clock=clock)
        counts = pipeline.run(frames, written)
    assert counts.written == counts.faces == frames.count and written == list(range(frames.count))
    return clock


def test_a_group_is_written_while_the_model_works_on_the_next():
    """Its second batch ends only when the first group is written: were the two in turn, it would wait in vain."""
    written, waits = Written(), []

    class Waiting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            waits.append(not waits or written.is_one_group.wait(PATIENCE_S))
            return images

    model = echo()
    model.encoder = Waiting()
    clock = go_through(Frames(3 * GROUP), written, model)
    assert waits == [True] * 3
    assert 0 < clock.share("model") <= 1 and clock.share("another") is None


@pytest.mark.slow
@pytest.mark.parametrize("smooth", [0, 12])
def test_whole_groups_before_a_frame_that_cannot_be_read_are_written(smooth):
    class Broken(Frames):
        def __iter__(self):
            yield from itertools.islice(super().__iter__(), 2 * GROUP + 5)
            raise SwapfastError("the next one")

    written = Written()
    with pytest.raises(SwapfastError, match="the next one"):
        go_through(Broken(4 * GROUP), written, echo(), smooth)
    # Colours are a mean over those behind too.
    assert written == list(range(2 * GROUP - smooth)) and written.is_closed


@pytest.mark.slow
@pytest.mark.parametrize("smooth", [0, 12])
def test_as_many_frames_live_however_many_there_are(smooth):
    """Two groups at the model, a few between two stages, and those that colours are smoothed over."""
    most = {}
    for count in (4 * GROUP, 16 * GROUP):
        frames = Frames(count)
        go_through(frames, Written(), echo(), smooth)
        most[count] = frames.most
    assert max(most.values()) <= 2 * GROUP + 6 * (WORKERS + 1) + smooth, most


@pytest.mark.long
def test_a_longer_video_holds_no_more_frames(tmp_path):
    model, most = save_model(tmp_path / "m"), {}
    for count in (48, 128):
        clip = tmp_path / f"{count}.mp4"
        write_video(clip, (np.roll(FACE.image, index % 2, 1) for index in range(count)), SIZE, SIZE)
        lines = [landmark_line(FACE.landmarks, frame=index, track=0) for index in range(count)]
        clip.with_suffix(".jsonl").write_text("\n".join([header_line(clip.name, count), *lines]) + "\n")
        most[count] = most_video_frames(model, clip)
    assert 0 < most[128] <= 2 * GROUP + 12 + 5 * (WORKERS + 1), most  # 12: of --smooth


def most_video_frames(model: Path, clip: Path) -> int:
    """How many decoded frames live at most while a clip is swapped, at a look every eight frames."""
    request = SwapRequest(model, clip, clip.with_name(f"new-{clip.name}"), device="cpu", workers=WORKERS)
    numbers = []

    looks = itertools.count()

    def count_them(*_: int) -> None:
        if next(looks) % 8 == 0:
            numbers.append(sum(type(thing) is VideoFrame for thing in gc.get_objects()))

    swap_video(plan_video(request, VideoSettings()), count_them)
    return max(numbers)
