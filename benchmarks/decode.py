"""Compares decoders for each kind of file: python -m benchmarks.decode

    png             faceswap heads of 512 px, files
    jpeg            pictures of a prepared set: 4:4:4, quality 98, in memory
    mask_jpeg       its masks: gray, quality 100, three squares one below the other, in memory
    raw             pictures and masks of a raw prepared set, checksum included

    dali_cpu, dali_mixed                DALI with all cores; mixed: on a GPU, where there is one, at several batches,
                                        pixels left there or fetched. hw_decoder_load: the share of its JPEG engine
    opencv_threads, opencv_processes    cv2.imdecode on all cores
    kornia_threads, kornia_processes    kornia_rs as in swapfast/faces/image.py, which takes PNGs only
    set_threads, set_processes          the raw set's own reader

Processes are forked anew for each run, as pipelines/fill.py does. ``cpu_ms_per_face`` is of all processes together and
tells more than the faces/s where something else uses the cores. Every row says how far its pixels are from OpenCV's,
for raw from those that were written; a lossless file with any difference ends the run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from benchmarks.common import Results, Timing, cpu_seconds, parser, peak_mib, reset_peak, significant, summary, timed
from benchmarks.faces import head_folders
from pipelines.decode import BATCH, dali_version
from pipelines.prepare import crop_and_masks, prepare
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.prepared import PreparedSet, open_prepared
from swapfast.system import available_cores, on_all_cores

if TYPE_CHECKING:
    from nvidia.dali import Pipeline
    from nvidia.dali.data_node import DataNode

HEAD = 512
MIXED_BATCHES = (16, 64, 256)
THREADS = available_cores()
QUEUED = 3  # DALI's batches that may be ready or under way when a run begins
SETTLE_S = 0.3  # until it has made the batches that it makes ahead

Decode = Callable[[Any], np.ndarray]  # of one of a kind's items: a path, encoded bytes or a set's row


@dataclass(frozen=True)
class Files:
    """Files of one kind. items: what a decoder is given of each, a path, encoded bytes or a set's row.

    expected: the pixels of each. lossless: whether every decoder must find just these. encoded_bytes: on average.
    """

    kind: str
    size: int
    items: Sequence
    expected: Sequence[np.ndarray]
    lossless: bool
    encoded_bytes: float


class Pool:
    """A decoder that is called for one file at a time, on all cores; by threads or by processes."""

    def __init__(self, name: str, files: Files, decode: Decode, processes: bool) -> None:
        self.labels: dict[str, object] = {"decoder": f"{name}_{'processes' if processes else 'threads'}"}
        self.files, self.decode, self.processes = files, decode, processes

    def all(self) -> list[np.ndarray]:
        return [self.decode(item) for item in self.files.items]

    def ready(self) -> None:
        """Nothing is made ahead."""

    def run(self, count: int) -> None:
        """Decode ``count`` files, beginning again after the last, and keep none."""
        items = [self.files.items[i % len(self.files.items)] for i in range(count)]
        if self.processes:
            for _ in on_all_cores(self._decode_only, items):
                pass
            return
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(self._decode_only, items):
                pass

    def _decode_only(self, item: object) -> None:
        self.decode(item)  # what it gives would have to travel back


class Dali:
    """DALI on the CPU or, mixed, on GPU 0; fetch: whether pixels are wanted in host memory."""

    def __init__(
        self, files: Files, batch: int, mixed: bool = False, fetch: bool = False, hw_decoder_load: float = 1.0
    ) -> None:
        self.labels: dict[str, object] = {"decoder": "dali_mixed" if mixed else "dali_cpu", "decode_batch": batch}
        if mixed:
            self.labels |= {"pixels_on": "host" if fetch else "gpu", "hw_decoder_load": hw_decoder_load}
        self.files, self.batch, self.mixed, self.fetch = files, batch, mixed, fetch
        self.pipeline = _pipeline(files, batch, 0 if mixed else None, hw_decoder_load)
        self.runs = 0

    def all(self) -> list[np.ndarray]:
        count = len(self.files.items)
        pictures: dict[int, np.ndarray] = {}
        for _ in range(-(-count // self.batch)):
            first = self.runs * self.batch
            for place, picture in enumerate(self._run(fetch=True)):
                pictures[(first + place) % count] = np.array(picture)
        return [pictures[index] for index in range(count)]

    def ready(self) -> None:
        """Wait until it works at its own pace, the batches that it made ahead being gone."""
        for _ in range(QUEUED):
            self._run(self.fetch)

    def run(self, count: int) -> None:
        """Decode ``count`` files and keep none."""
        for _ in range(count // self.batch):
            self._run(self.fetch)

    def _run(self, fetch: bool) -> list[np.ndarray]:
        (output,) = self.pipeline.run()
        self.runs += 1
        if not fetch:
            return []
        output = output.as_cpu() if self.mixed else output
        return [output.at(i) for i in range(len(output))]


def _pipeline(files: Files, batch: int, device_id: int | None, hw_decoder_load: float) -> Pipeline:
    """pipelines/graph.py's, for one kind of file."""
    from nvidia.dali import fn, pipeline_def, types

    from pipelines.graph import decode, decoding_pipeline

    def some(run: int) -> list:
        return [files.items[(run * batch + i) % len(files.items)] for i in range(batch)]

    if files.kind == "png":
        return decoding_pipeline(lambda run: list(map(str, some(run))), batch, THREADS, device_id)

    @pipeline_def(batch_size=batch, num_threads=THREADS, device_id=device_id, prefetch_queue_depth=2)
    def graph() -> DataNode:
        encoded = fn.external_source(some, batch=True, dtype=types.UINT8, ndim=1)
        device = "cpu" if device_id is None else "mixed"
        return decode(encoded, device, files.kind == "mask_jpeg", hw_decoder_load)

    return graph()


def with_opencv(mode: int, item: Path | np.ndarray) -> np.ndarray:
    data = np.fromfile(item, np.uint8) if isinstance(item, Path) else item
    picture = cv2.imdecode(data, mode)
    assert picture is not None
    return picture


def joined(face: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """A raw face's pictures in one array."""
    return np.concatenate([face.reshape(-1), masks.reshape(-1)])


def read_row(opened: PreparedSet, row: int) -> np.ndarray:
    face, masks = opened.read(row)
    return joined(face, masks)


def png_files(folder: Path) -> Files:
    paths = sorted(folder.glob("*.png"))
    expected = [with_opencv(cv2.IMREAD_COLOR, path) for path in paths]
    return Files("png", HEAD, paths, expected, True, statistics.mean(path.stat().st_size for path in paths))


def jpeg_files(opened: PreparedSet, kind: str) -> Files:
    """The pictures of a prepared set, or its masks."""
    items = [np.frombuffer(opened.bytes_of(row)[kind == "mask_jpeg"], np.uint8) for row in range(len(opened))]
    mode = cv2.IMREAD_GRAYSCALE if kind == "mask_jpeg" else cv2.IMREAD_COLOR
    expected = [with_opencv(mode, item) for item in items]
    return Files(kind, opened.size, items, expected, False, statistics.mean(map(len, items)))


def raw_files(opened: PreparedSet, folder: Path) -> Files:
    """A raw set's rows; what is expected is cut from the folder anew."""
    expected = [
        joined(*crop_and_masks(record, opened.crop, opened.mask, opened.size)) for record in scan_folder(folder).records
    ]
    return Files("raw", opened.size, range(len(opened)), expected, True, 6 * opened.size**2)


def decoders_of(files: Files, opened: PreparedSet | None = None) -> list[Pool | Dali]:
    """Everything that decodes this kind of file here."""
    if files.kind == "raw":
        assert opened is not None
        read = partial(read_row, opened)
        return [Pool("set", files, read, processes) for processes in (False, True)]
    mode = cv2.IMREAD_GRAYSCALE if files.kind == "mask_jpeg" else cv2.IMREAD_COLOR
    decoders: list[Pool | Dali] = [
        Pool("opencv", files, partial(with_opencv, mode), processes) for processes in (False, True)
    ]
    if files.kind == "png":
        decoders += [Pool("kornia", files, read_image, processes) for processes in (False, True)]
    if dali_version() is not None:
        decoders.append(Dali(files, BATCH))
        if torch.cuda.is_available():
            decoders += [Dali(files, batch, True, fetch) for batch in MIXED_BATCHES for fetch in (False, True)]
    return decoders


def differences(files: Files, decoded: Sequence[np.ndarray]) -> dict[str, float]:
    """The largest and the mean difference of any pixel, in levels of 255."""
    largest, total, count = 0, 0.0, 0
    for expected, picture in zip(files.expected, decoded, strict=True):
        difference = abs(expected.astype(np.int16) - picture.reshape(expected.shape))
        largest, total, count = (
            max(largest, int(difference.max())),
            total + float(difference.sum()),
            count + difference.size,
        )
    return {"max_difference": largest, "mean_difference": significant(total / count)}


def measured(files: Files, decoders: Sequence[Pool | Dali], faces: int, repeats: int) -> list[dict]:
    """Each decoder's pixels looked at, then all of them timed in turn."""
    errors, peaks = [], []
    for decoder in decoders:
        reset_peak()
        errors.append(differences(files, decoder.all()))
        if files.lossless and errors[-1]["max_difference"]:
            raise SystemExit(f"{files.kind} {files.size} px: {decoder.labels} gives other pixels: {errors[-1]}")
        decoder.run(faces)
        # What DALI takes of a GPU's memory is its own affair and nothing that torch knows of.
        peaks.append(None if "pixels_on" in decoder.labels else peak_mib(False))
    seconds: list[list[float]] = [[] for _ in decoders]
    cpu_times: list[list[float]] = [[] for _ in decoders]
    for _ in range(repeats):
        for place, decoder in enumerate(decoders):
            decoder.ready()
            cpu_start = cpu_seconds()
            seconds[place].append(timed(partial(decoder.run, faces)))
            cpu_times[place].append(cpu_seconds() - cpu_start)
            if isinstance(decoder, Dali):
                time.sleep(SETTLE_S)
    rows = []
    for decoder, difference, peak, wall, cpu in zip(decoders, errors, peaks, seconds, cpu_times):
        labels = {"name": "decode", "file": files.kind, "size": files.size, **decoder.labels}
        extra = {"encoded_bytes": round(files.encoded_bytes), **difference}
        cpu_ms = significant(1000 * statistics.median(cpu) / faces)
        rows.append(summary(Timing(wall, peak), faces, **labels, cpu_ms_per_face=cpu_ms, **extra))
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="px of JPEGs and raw faces")
    arguments.add_argument("--faces", type=int, default=64, help="different ones; default 64")
    options = arguments.parse_args()
    repeats, count = (1, 8) if options.quick else (5, 1024)
    if torch.cuda.is_available():
        torch.cuda.init()  # so that the timer waits for the GPU
        count = max(count, 4 * max(MIXED_BATCHES))
    results = Results(options.json)
    with head_folders(options.faces, HEAD) as (folder, _), TemporaryDirectory() as work:
        files = png_files(folder)
        for row in measured(files, decoders_of(files), count, repeats):
            results.add(row)
        for size in options.sizes:
            sets = {}
            for encoding in ("jpeg", "raw"):
                out = Path(work) / f"{encoding}{size}"
                prepare(folder, out, encoding, size, CropConfig(), MaskConfig())
                sets[encoding] = open_prepared(out)
            for files in (jpeg_files(sets["jpeg"], "jpeg"), jpeg_files(sets["jpeg"], "mask_jpeg")):
                for row in measured(files, decoders_of(files), count, repeats):
                    results.add(row)
            files = raw_files(sets["raw"], folder)
            for row in measured(files, decoders_of(files, sets["raw"]), count, repeats):
                results.add(row)


if __name__ == "__main__":
    main()
