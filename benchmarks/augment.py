"""How fast is the augmentation, step by step and whole, on every backend: python -m benchmarks.augment

    python -m benchmarks.augment --sizes 64 256 --steps whole --peer-up-to 128 --backends opencv kornia:cuda triton

Backends take turns on the same faces with 3 masks, each from bytes to floats:
    peer_loop        one image after another, six channels together: benchmarks/peer.py
    opencv           OpenCVAugmenter, and the plain functions that it is made of
    kornia           DeviceAugmenter on tensors of the CPU; where there is a GPU, of it too
    triton           FusedAugmenter; only where there is a GPU, and only whole
    dali_affine      what DALI alone can do: target and masks moved, flipped and resized; no LAB, no CLAHE, no 5x5 warp,
                     so no feed: benchmarks/dali_affine.py. On the GPU where there is one
Faces lie where the backend works. Where there is a GPU the whole ends on it: the peer's floats and OpenCV's bytes are
copied there, and the bytes become floats there (``copied``).

Rows by ``name``:
    color            LAB jitter and CLAHE, LAB there and back included
    clahe            the part of it that CLAHE is, from lightness to lightness
    transform        rotate, zoom, shift and flip image and masks
    warp             the 5x5 warp of the image: the map and reading it
    warp_landmarks   the warp to landmarks: from points to nodes or to the peer's map of all pixels, and reading
    masks_targets    image and masks to target and masks of half the size (whole gives none smaller)
    to_float         bytes to floats in 0..1: the peer and OpenCV at the end, the others at the beginning
    to_device        on a GPU: what of the whole of the peer and OpenCV is the copy
    whole            all that a batch needs with the 5x5 warp, its random amounts included; one feed and one target
    whole_landmarks  the same with the warp to landmarks
    host_to_device   the batch's bytes from pinned memory to the GPU
    copy_bandwidth   1 GiB from one place of the GPU's memory to another
    unusable         a backend that could not make a small batch on this machine, with its error
Steps do not add up to the whole: it shares work between them, and the peer's CLAHE is by a chance of its own.

In a row:
    threads          of the backend: OpenCV's own for the peer, PyTorch's, those of OpenCVAugmenter, DALI's
    median_ms        wall time from call to finished result, on a GPU with all that the host does
    host_ms          where the result is on a GPU: until the call returns to the host, which is then free
    device_ms        of a backend on a GPU: the GPU's own time, measured while the host is ahead of it (CUDA events).
                     Not of DALI, whose streams are its own
    ratio_to_peer    the median of ratios, each of two runs in the same turn, each right after an untimed one
    peak_mib         most memory in use during a call: of the process, or on the GPU; all backends' inputs are in it
    added_mib        by how much the call raised it, results included; without a GPU at the first call
    beside_mib       on a GPU: the part of it that is not results
    floor_fraction   on a GPU: the share of device_ms that 42 bytes a px take at copy_bandwidth. With ``estimate``,
                     where there is no GPU: the bytes of the floor among those that benchmarks/graph_cost.py counts,
                     beside launches and instructions. No clock ran, and such a row has no time
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks import dali_affine, graph_cost, peer
from benchmarks.common import Results, Timing, compare, parser, peak_mib, reset_peak, significant, summary
from swapfast.augment.device import clahe, color, geometry
from swapfast.augment.device.augmenter import Amounts, DeviceAugmenter, packed_amounts, to_unit
from swapfast.augment.device.transfer import send, send_tensor
from swapfast.augment.draws import Draws, draw, landmark_noise, with_landmarks
from swapfast.augment.host import color as host_color
from swapfast.augment.host import geometry as host_geometry
from swapfast.augment.host import stacked
from swapfast.augment.host.augmenter import OpenCVAugmenter, strips
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.landmarks import Each
from swapfast.augment.result import Augmented
from swapfast.batch import MASK_NAMES, SIDES
from swapfast.config import AugmentationConfig, CropConfig, MaskConfig
from swapfast.faces.crop import crop_face, crop_shares
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import training_masks
from swapfast.faces.matching import LandmarkMatcher
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import FaceTable
from swapfast.synthetic import synthesize
from swapfast.system import available_cores

CONFIG = AugmentationConfig()
FLOOR_BYTES = (3 + len(MASK_NAMES)) * (1 + 4) + 3 * 4  # a px: bytes read once; target, masks, feed written as float32
PICTURE = 256  # px of the drawn pictures; crops above are smoother than real ones, which hardly any time depends on
SEED = 1
COPIED = 2**30  # bytes
HEAD_START = 6 * 10**7  # of the GPU's cycles, some 30 ms: longer than the host needs to ask for a batch

STEPS = (
    "color",
    "clahe",
    "transform",
    "warp",
    "warp_landmarks",
    "masks_targets",
    "to_float",
    "to_device",
    "whole",
    "whole_landmarks",
)
PEER = "peer_loop"

Call = Callable[[], object]
Whole = TypeVar("Whole")  # what a backend makes of a batch


# ---- what all start from -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """N faces of S px, the first half side A's, and what is drawn for them."""

    faces: np.ndarray  # (N, S, S, 4) uint8, BGR and the face mask
    extra_masks: np.ndarray  # (N, 2, S, S) uint8, the other masks
    pairs: np.ndarray  # (N, 2, 68, 2) px, landmarks of each face and of its match
    each: Each = map  # whose threads share the host's part of the warp to landmarks

    @property
    def size(self) -> int:
        return self.faces.shape[1]

    def __len__(self) -> int:
        return len(self.faces)

    def draw(self) -> Draws:
        """The amounts of the batch, drawn anew: the same each time."""
        return draw(SEED, np.arange(len(self)), 0, self.size, CONFIG)

    def draw_landmarks(self) -> Draws:
        return self.to_landmarks(self.draw())

    def to_landmarks(self, draws: Draws) -> Draws:
        return with_landmarks(draws, self.pairs, landmark_noise(SEED, np.arange(len(self)), 0), each=self.each)[0]

    @cached_property
    def six(self) -> np.ndarray:
        """(N, S, S, 6) uint8: as the peer has them."""
        return np.concatenate([self.faces, self.extra_masks.transpose(0, 2, 3, 1)], axis=3)


def make_records(folder: Path, faces: int) -> list[FaceTable]:
    """Of each side: made-up faces in plain pictures."""
    synthesize(folder / "made", faces=faces, size=PICTURE, pairs=0, seed=SEED, workers=1)
    return [scan_folder(folder / "made" / side).records for side in SIDES]


def make_data(records: Sequence[Sequence[FaceRecord]], size: int, batch: int) -> Data:
    """A batch of crops; where it is larger than there are faces, they come again."""
    crop, half = CropConfig(), batch // 2
    samples = []
    for record in (record for side in records for record in side):
        masks = training_masks(record, crop, MaskConfig(), size, MASK_NAMES)
        samples.append(np.dstack([crop_face(record, read_image(record.path), crop, size), masks]))
    index = [np.resize(np.arange(len(side)), half) for side in records]
    six = np.stack(samples)[np.concatenate([index[0], len(records[0]) + index[1]])]
    matcher = LandmarkMatcher.from_records(records, size, crop.centering, *crop_shares(crop))
    pairs = matcher.get_close_landmarks(np.stack(index), matcher.choices(SEED, np.arange(half)))
    return Data(np.ascontiguousarray(six[..., :4]), np.ascontiguousarray(six[..., 4:].transpose(0, 3, 1, 2)), pairs)


# ---- the peer ------------------------------------------------------------------------------------------------


def peer_calls(data: Data, threads: int) -> dict[str, Call]:
    """The peer's way. It changes what it is given, so it is given copies where that would show."""
    rng = np.random.default_rng(SEED)
    six = data.six
    bgr = np.ascontiguousarray(six[..., :3])
    lab = np.stack([cv2.cvtColor(image, cv2.COLOR_BGR2LAB) for image in bgr])
    pairs = data.draw().move_points(data.pairs)
    wholes: dict[str, Callable[[], list[Tensor]]] = {
        "whole": lambda: peer.augment(six.copy(), rng),
        "whole_landmarks": lambda: peer.augment_to_landmarks(six.copy(), pairs, rng),
    }
    calls: dict[str, Call] = {
        "color": lambda: peer.color_adjust(bgr.copy(), rng),
        "clahe": lambda: peer.clahe(lab.copy(), rng),
        "transform": lambda: peer.transform(six, rng),
        "warp": lambda: peer.warp(bgr, rng),
        "warp_landmarks": lambda: peer.warp_landmarks(bgr, pairs, rng),
        "masks_targets": lambda: peer.shrink(six, data.size // 2),
        "to_float": lambda: [peer.to_tensor(part) for part in (bgr, six[..., :3], six[..., 3:])],
        **wholes,
    }
    if torch.cuda.is_available():
        calls |= copied(wholes, lambda parts: [part.to("cuda") for part in parts])
    return {name: partial(with_opencv_threads, threads, call) for name, call in calls.items()}


def copied(wholes: dict[str, Callable[[], Whole]], copy: Callable[[Whole], object]) -> dict[str, Call]:
    """The wholes of a backend of the CPU, their results copied to the GPU, and the copy by itself."""
    made = wholes["whole"]()

    def make_and_copy(call: Callable[[], Whole]) -> object:
        return copy(call())

    return {"to_device": lambda: copy(made)} | {name: partial(make_and_copy, call) for name, call in wholes.items()}


def with_opencv_threads(threads: int, call: Call) -> object:
    """A call with OpenCV's own threads, which ours (``OpenCVAugmenter``) have switched off."""
    cv2.setNumThreads(threads)
    try:
        return call()
    finally:
        cv2.setNumThreads(1)


# ---- OpenCV --------------------------------------------------------------------------------------------------


def opencv_calls(data: Data, threads: int) -> dict[str, Call]:
    """Steps by the plain functions of ``opencv``, in strips on threads as ``OpenCVAugmenter`` does them."""
    size, half, count = data.size, data.size // 2, len(data)
    faces, extra_masks, draws = data.faces, data.extra_masks, data.draw()
    on_gpu = torch.cuda.is_available()
    augment = OpenCVAugmenter(size, size, [size], threads=threads, as_float=not on_gpu)
    as_bytes = OpenCVAugmenter(size, size, [size], threads=threads)(faces, extra_masks, draws)
    jitter, grids, inverse = host_color.jitter_matrices(draws), draws.clahe_grid.tolist(), draws.inverse().copy()
    moved, moved_masks, feed = faces.copy(), extra_masks.swapaxes(0, 1).copy(), np.empty_like(faces)
    target, masks = np.empty((count, half, half, 3), np.uint8), np.empty((3, count, half, half), np.uint8)
    lightness = np.stack([cv2.cvtColor(face, cv2.COLOR_BGR2LAB)[..., 0] for face in faces[..., :3].copy()])
    equalized = np.empty_like(lightness)
    run = partial(in_strips, ThreadPoolExecutor(threads), local(), strips(count, size, threads))

    def recolor(strip: slice, scratch: Scratch) -> None:
        host_color.recolor(faces[strip], jitter[strip], grids[strip], scratch)

    def equalize(strip: slice, scratch: Scratch) -> None:
        for grid, bytes_before, after in zip(grids[strip], lightness[strip], equalized[strip]):
            if grid:
                host_color.equalize(bytes_before, grid, out=after)

    def transform(strip: slice, scratch: Scratch) -> None:
        host_geometry.move_all(faces[strip], inverse[strip], moved[strip], scratch)
        host_geometry.move_masks(extra_masks[strip], inverse[strip], moved_masks, 0, strip.start)

    def warp(draws: Draws) -> None:
        nodes = draws.control_grid()
        run(lambda strip, scratch: host_geometry.warp_all(faces[strip], nodes[strip], feed[strip], scratch))

    def shrink(strip: slice, scratch: Scratch) -> None:
        small = host_geometry.shrink(moved[strip], half, scratch)
        cv2.cvtColor(stacked.tall(small), cv2.COLOR_BGRA2BGR, dst=stacked.tall(target[strip]))
        cv2.extractChannel(stacked.tall(small), 3, dst=stacked.tall(masks[0, strip]))
        for plane, mask in zip(moved_masks, masks[1:]):
            mask[strip] = host_geometry.shrink(plane[strip], half, scratch)

    wholes: dict[str, Callable[[], Augmented]] = {
        "whole": lambda: augment(faces, extra_masks, data.draw()),
        "whole_landmarks": lambda: augment(faces, extra_masks, data.draw_landmarks()),
    }
    calls: dict[str, Call] = {
        "color": partial(run, recolor),
        "clahe": partial(run, equalize),
        "transform": partial(run, transform),
        "warp": lambda: warp(draws),
        "warp_landmarks": lambda: warp(data.to_landmarks(draws)),
        "masks_targets": partial(run, shrink),
        "to_float": as_bytes.to_float,
        **wholes,
    }
    return calls | (copied(wholes, floats_on_gpu) if on_gpu else {})


def floats_on_gpu(batch: Augmented) -> Augmented:
    """A batch of bytes on the GPU, where they become floats."""

    def copy(parts: Sequence[Tensor]) -> list[Tensor]:
        return [send_tensor(part, "cuda") for part in parts]

    masks = None if batch.masks is None else copy(batch.masks)
    return Augmented(send_tensor(batch.feed, "cuda"), copy(batch.targets), masks).to_float()


def in_strips(
    pool: ThreadPoolExecutor, memory: local, parts: list[slice], work: Callable[[slice, Scratch], None]
) -> None:
    """``work`` on all parts, each thread with intermediate images of its own."""

    def one(part: slice) -> None:
        if not hasattr(memory, "scratch"):
            memory.scratch = Scratch()
        work(part, memory.scratch)

    list(pool.map(one, parts))


# ---- kornia --------------------------------------------------------------------------------------------------


def kornia_calls(data: Data, device: str) -> dict[str, Call]:
    """Steps by the functions that ``DeviceAugmenter`` is made of.

    Faces are on the device. Amounts are too, but for the warp to landmarks, which includes the host's part, and the
    whole.
    """
    size, half, draws = data.size, data.size // 2, data.draw()
    faces, extra_masks = torch.from_numpy(data.faces).to(device), torch.from_numpy(data.extra_masks).to(device)
    amounts, groups = Amounts.unpack(send(packed_amounts(draws), device)), clahe.groups(draws)
    augment = DeviceAugmenter(size, size, [size], CONFIG)

    def floats() -> tuple[Tensor, Tensor]:
        pixels = faces.permute(0, 3, 1, 2)
        return to_unit(pixels[:, :3]), to_unit(torch.cat([pixels[:, 3:], extra_masks], dim=1))

    images, masks = floats()
    lightness = color.bgr_to_lab(images)[:, 0].contiguous()

    def equalize() -> list[Tensor]:
        rows = [amounts.order[group.first : group.last] for group in groups]
        return [clahe.equalize(lightness[r], group.grid, group.limit) for r, group in zip(rows, groups)]

    def warp(nodes: Tensor) -> Tensor:
        return geometry.read(images, geometry.control_map(nodes, size))

    def shrink() -> tuple[Tensor, Tensor]:
        small = geometry.shrink(images, half).contiguous(memory_format=torch.channels_last)
        return small, geometry.shrink(masks, half)

    return {
        "color": lambda: color.color_adjust(images, *amounts.color, groups),
        "clahe": equalize,
        "transform": lambda: [geometry.move(part, amounts.matrix) for part in (images, masks)],
        "warp": lambda: warp(amounts.nodes),
        "warp_landmarks": lambda: warp(landmark_places(data, draws, device)),
        "masks_targets": shrink,
        "to_float": floats,
        "whole": lambda: augment(faces, extra_masks, data.draw()),
        "whole_landmarks": lambda: augment(faces, extra_masks, data.draw_landmarks()),
    }


def landmark_places(data: Data, draws: Draws, device: str) -> Tensor:
    """(N, K, K, 2) where the nodes of the warp to landmarks read, worked out on the host and sent."""
    nodes = geometry.relative(data.to_landmarks(draws).control_grid(), data.size)
    return send(nodes.astype(np.float32), device)


# ---- triton and DALI -----------------------------------------------------------------------------------------


def triton_calls(data: Data) -> dict[str, Call]:
    """The wholes by the fused kernels; their steps are no launches of their own."""
    from swapfast.augment.fused.augmenter import FusedAugmenter

    faces, extra_masks = torch.from_numpy(data.faces).to("cuda"), torch.from_numpy(data.extra_masks).to("cuda")
    augment = FusedAugmenter(data.size, data.size, [data.size], CONFIG)
    return {
        "whole": lambda: augment(faces, extra_masks, data.draw()),
        "whole_landmarks": lambda: augment(faces, extra_masks, data.draw_landmarks()),
    }


def dali_calls(data: Data, threads: int, device: str) -> dict[str, Call]:
    """The steps that DALI has."""
    return dali_affine.affine_calls(data.six, data.draw, threads, device)


# ---- measuring -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Backend:
    """name: as in the rows. device: where it works. make: its steps for some data, by name."""

    name: str
    device: str
    make: Callable[[Data], dict[str, Call]]

    def labels(self, threads: int) -> dict[str, object]:
        own_threads = self.device == "cpu" or self.name == "dali_affine"
        return {"backend": self.name, "device": self.device, "threads": threads if own_threads else None}

    def is_one_of(self, names: Sequence[str] | None) -> bool:
        """Whether it is meant by one of names such as "kornia" and "kornia:cuda". None means all, and so the peer."""
        return names is None or self.name == PEER or bool({self.name, f"{self.name}:{self.device}"} & set(names))


def backends(threads: int) -> list[Backend]:
    """Those that this machine has a device for, the peer first."""
    on_gpu = torch.cuda.is_available()
    dali_device = "cuda" if on_gpu else "cpu"
    measured = [
        Backend(PEER, "cpu", partial(peer_calls, threads=threads)),
        Backend("opencv", "cpu", partial(opencv_calls, threads=threads)),
        Backend("kornia", "cpu", partial(kornia_calls, device="cpu")),
        Backend("dali_affine", dali_device, partial(dali_calls, threads=threads, device=dali_device)),
    ]
    if on_gpu:
        measured += [
            Backend("kornia", "cuda", partial(kornia_calls, device="cuda")),
            Backend("triton", "cuda", triton_calls),
        ]
    return measured


def split_usable(chosen_backends: Sequence[Backend], data: Data) -> tuple[list[Backend], list[dict]]:
    """Those that can make a small batch, and a row for each that cannot: one failure must not cost all others.

    It also lets libraries load what they need before any memory is looked at.
    """
    usable, rows = [], []
    for backend in chosen_backends:
        try:
            for call in backend.make(data).values():
                call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            usable.append(backend)
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            label = {"name": "unusable", "backend": backend.name, "device": backend.device}
            rows.append(label | {"error": f"{type(error).__name__}: {reason[-1][:200]}"})
    return usable, rows


def used_memory(call: Call, backend: Backend) -> dict[str, float]:
    """MiB at most in use during one call, how many the call added, and of these on a GPU those beside its results."""
    if backend.device == "cuda":
        call()  # loads what CUDA needs
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        bytes_before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak, results = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated() - bytes_before
        del result
        measured = {"peak_mib": peak, "added_mib": peak - bytes_before, "beside_mib": peak - bytes_before - results}
        return {name: round(value / 2**20, 1) for name, value in measured.items()}
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # what others have freed must not serve this one unseen
    reset_peak()
    mib_before = peak_mib(False)
    call()
    return {"peak_mib": round(peak_mib(False), 1), "added_mib": round(peak_mib(False) - mib_before, 1)}


def device_ms(call: Call, repeats: int) -> float:
    """Median of the GPU's own time for a call. It is kept busy until the host has asked for all of it."""
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return significant(statistics.median(times))


def host_ms(call: Call, repeats: int) -> float:
    """Median of the time until a call returns to the host, begun when the GPU is idle."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return significant(statistics.median(times))


def copy_row(repeats: int) -> dict:
    """How fast the GPU's memory is: bytes read and written, per second."""
    source, target = (torch.empty(COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))
    ms = device_ms(lambda: target.copy_(source), repeats)
    return {
        "name": "copy_bandwidth",
        "backend": "torch",
        "device": "cuda",
        "bytes": COPIED,
        "device_ms": ms,
        "gb_per_s": significant(2 * COPIED / ms / 1e6),
    }


def transfer_row(data: Data, repeats: int) -> dict:
    """The batch's bytes on their way to the GPU."""
    pinned = [torch.from_numpy(array).pin_memory() for array in (data.faces, data.extra_masks)]
    input_bytes = sum(array.nbytes for array in (data.faces, data.extra_masks))

    def call() -> list[Tensor]:
        return [array.to("cuda", non_blocking=True) for array in pinned]

    timing = compare({"copy": call}, repeats)["copy"]
    ms = device_ms(call, repeats)
    labels = {"name": "host_to_device", "size": data.size, "backend": "torch", "device": "cuda"}
    return summary(
        timing, len(data), **labels, device_ms=ms, bytes=input_bytes, gb_per_s=significant(input_bytes / ms / 1e6)
    )


def ratio(theirs: Timing, ours: Timing) -> float:
    return significant(statistics.median(a / b for a, b in zip(theirs.seconds, ours.seconds)))


def gpu_times(name: str, backend: Backend, call: Call, repeats: int) -> dict[str, float]:
    """host_ms and device_ms, as far as the step ends on a GPU and CUDA events see it."""
    on_device = backend.device == "cuda"
    if not on_device and not (torch.cuda.is_available() and name in ("to_device", "whole", "whole_landmarks")):
        return {}
    measured = {"host_ms": host_ms(call, repeats)}
    if backend.name != "dali_affine" and on_device:
        measured["device_ms"] = device_ms(call, repeats)
    return measured


def step_rows(
    name: str, data: Data, calls: dict[Backend, Call], repeats: int, threads: int, speed: float
) -> list[dict]:
    """One step on all backends that have it. speed: the GPU's copy bandwidth, GB/s."""
    memory = {backend: used_memory(call, backend) for backend, call in calls.items()}
    times = compare(calls, repeats, warm_up=1, in_a_row=True)
    theirs = next((timing for backend, timing in times.items() if backend.name == PEER), None)
    rows = []
    for backend, timing in times.items():
        extra: dict[str, object] = {} if theirs is None else {"ratio_to_peer": ratio(theirs, timing)}
        if backend.name == PEER and "landmarks" in name:
            extra["triangles"] = "opencv" if peer.griddata is None else "scipy"
        gpu_ms = gpu_times(name, backend, calls[backend], repeats)
        extra |= gpu_ms
        if backend.device == "cpu" and "host_ms" in gpu_ms:
            extra["copied"] = True
        if backend.device == "cuda" and "device_ms" in gpu_ms and name.startswith("whole"):
            floor = FLOOR_BYTES * len(data) * data.size**2 / speed / 1e6
            extra.update(floor_ms=significant(floor), floor_fraction=significant(floor / gpu_ms["device_ms"]))
        labels = {"name": name, "size": data.size, **backend.labels(threads), **extra}
        rows.append(summary(timing, len(data), **labels) | memory[backend])
    return rows


def estimates(size: int, batch: int) -> list[dict]:
    """What is counted of the backends of a GPU where none is there to be measured: never a time."""
    counted = graph_cost.cost(size, batch, len(MASK_NAMES), CONFIG, device="meta")
    return [{"name": "whole", "device": "cuda", "estimate": True} | row for row in counted]


def size_rows(
    data: Data,
    chosen_backends: Sequence[Backend],
    names: Sequence[str],
    repeats: int,
    threads: int,
    speed: float,
) -> Iterator[dict]:
    """The named steps of one size, each as soon as it is measured."""
    gc.collect()  # the last size's threads and memory
    steps = {backend: backend.make(data) for backend in chosen_backends}
    for name in names:
        calls = {backend: made[name] for backend, made in steps.items() if name in made}
        if calls:
            yield from step_rows(name, data, calls, repeats, threads, speed)


def parse_arguments() -> argparse.Namespace:
    flags = parser(__doc__)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    flags.add_argument("--batch", type=int, default=64, help="faces of both sides together; default 64")
    flags.add_argument("--faces", type=int, default=8, help="different ones of each side; default 8")
    flags.add_argument("--threads", type=int, default=available_cores(), help="of every backend; default all cores")
    flags.add_argument("--repeats", type=int, help="timed runs of each step; default 11, 1 with --quick")
    flags.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, metavar="NAME", help="these only")
    names = "these only, and peer_loop; NAME:cpu or NAME:cuda is one of a name's two. Default all there are"
    flags.add_argument("--backends", nargs="+", metavar="NAME", help=names)
    flags.add_argument(
        "--peer-up-to", type=int, metavar="PX", help="leave the peer, which is slow, out above this size"
    )
    options = flags.parse_args()
    if options.batch % 2:
        flags.error(f"--batch {options.batch}: two sides need an even number")
    known = {name for b in backends(1) for name in (b.name, f"{b.name}:{b.device}")} | {"triton", "kornia:cuda"}
    if unknown := [name for name in options.backends or () if name not in known]:
        flags.error(f"--backends {unknown[0]}: there are {', '.join(sorted(known))}")
    if options.repeats is None:
        options.repeats = 1 if options.quick else 11
    return options


def main() -> None:
    options = parse_arguments()
    repeats, on_gpu = options.repeats, torch.cuda.is_available()
    torch.set_num_threads(options.threads)
    results, speed = Results(options.json), 0.0
    if on_gpu:
        results.add(copy_row(repeats))
        speed = results[0]["gb_per_s"]
    with TemporaryDirectory() as folder, ThreadPoolExecutor(options.threads) as pool:
        records = make_records(Path(folder), options.faces)
        chosen_backends = [backend for backend in backends(options.threads) if backend.is_one_of(options.backends)]
        chosen_backends, unusable = split_usable(chosen_backends, make_data(records, 32, 2))
        for row in unusable:
            results.add(row)
        for size in options.sizes:
            data = dataclasses.replace(make_data(records, size, options.batch), each=pool.map)
            without_peer = options.peer_up_to is not None and size > options.peer_up_to
            present = [backend for backend in chosen_backends if not (without_peer and backend.name == PEER)]
            for row in size_rows(data, present, options.steps, repeats, options.threads, speed):
                results.add(row)
            for row in [transfer_row(data, repeats)] if on_gpu else estimates(size, options.batch):
                results.add(row)


if __name__ == "__main__":
    main()
