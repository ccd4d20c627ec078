"""The preview sheet: its faces, the picture in the model folder, and the timelapse."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from pipelines.fill import UNUSABLE, FaceSource
from pipelines.sampler import Sampler
from swapfast.batch import SIDES
from swapfast.config import CropConfig, MaskConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face, shrink, spread_indices
from swapfast.faces.masks import training_masks
from swapfast.files import TEMPORARY, temporary_name, write_file, writer_lives
from swapfast.models import FaceAutoencoder
from swapfast.preview.samples import Samples
from swapfast.swap.apply import all_swaps
from swapfast.system import available_cores
from swapfast.training.observers import Observer, Viewer


class PreviewSet:
    """One side's faces as the preview needs them: item i is (input, target).

    input: (3, h, w) float32 in 0..1 in ``color_order``, what the model is shown. target: (H, W, 4) float32 in 0..1
    BGR, the whole face at coverage 100 % with its mask (1 everywhere unless ``masked``); its middle H * coverage px
    are what the model makes. num_images: that many faces spread over the folder, the same every time; 0: all. skip_bad:
    show the next face of the folder in the place of one that cannot be read.
    """

    def __init__(
        self,
        side: str,
        source: FaceSource,
        input_size: int,
        output_size: int,
        color_order: str = "bgr",
        num_images: int = 0,
        crop: CropConfig | None = None,
        mask: MaskConfig | None = None,
        masked: bool = True,
        skip_bad: bool = False,
    ) -> None:
        self.side, self.source = side, source
        self.input_size, self.output_size = input_size, output_size
        self.color_order = color_order
        self.crop, self.mask, self.masked = crop or CropConfig(), mask or MaskConfig(), masked
        self.chosen = spread_indices(len(source), num_images) if num_images else np.arange(len(source))
        self.whole = CropConfig(
            centering=self.crop.centering, coverage=100.0, vertical_offset=self.crop.vertical_offset
        )
        self.skip_bad = skip_bad
        self.full_size = 2 * round(output_size / (self.crop.coverage / 100) / 2)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Raises SwapfastError naming the file where it cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        member = int(self.chosen[index])
        tries = len(self.source) if self.skip_bad else 1
        for ahead in range(tries):
            at = (member + ahead) % len(self.source)
            try:
                return self._item(at)
            except UNUSABLE as error:
                if ahead == tries - 1:
                    path = self.source.folder.records[at].path
                    raise SwapfastError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
        raise AssertionError("there is at least one try")

    def _item(self, member: int) -> tuple[np.ndarray, np.ndarray]:
        record, picture = self.source.picture(member)
        shown = shrink(crop_face(record, picture, self.crop, max(self.input_size, self.output_size)), self.input_size)
        if self.color_order == "rgb":
            shown = shown[..., ::-1]
        target = np.full((self.full_size, self.full_size, 4), 255, np.uint8)
        target[..., :3] = crop_face(record, picture, self.whole, self.full_size)
        if self.masked:
            target[..., 3:] = training_masks(record, self.whole, self.mask, self.full_size, ["face"])
        return np.ascontiguousarray(shown.transpose(2, 0, 1), np.float32) / 255, target.astype(np.float32) / 255


class PreviewLoader:
    """The preview's faces of all sides: ``next(loader)`` -> inputs (sides, n, 3, h, w), targets (sides, n, H, W, 4).

    sets: one per side. batch_size: n. num_samples: 0 for other faces every time, in the order of ``seed``; otherwise
    the sets' faces from the first on, the same ones every time, decoded once.
    """

    def __init__(self, sets: Sequence[PreviewSet], batch_size: int, num_samples: int = 0, seed: int = 1) -> None:
        self.sets = sets
        self.static = num_samples > 0
        self.sampler = Sampler(seed, tuple(map(len, sets)), num_samples or batch_size)
        self.step = 0
        self._made: tuple[np.ndarray, np.ndarray] | None = None

    def __iter__(self) -> PreviewLoader:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        if self._made is not None and self.static:
            return self._made
        if self.static:
            ids = [np.arange(self.sampler.batch_size) % len(one) for one in self.sets]
        else:
            ids = self.sampler.ids(self.step)
        self.step += 1
        wanted = [(one, int(index)) for one, indices in zip(self.sets, ids) for index in indices]
        with ThreadPoolExecutor(available_cores()) as pool:
            items = list(pool.map(lambda item: item[0][item[1]], wanted))
        shape = (len(self.sets), -1)
        made = tuple(np.stack(part).reshape(*shape, *part[0].shape) for part in zip(*items))
        self._made = made
        return made


class PreviewSheet:
    """What ``model`` makes now of the same few faces of each side.

    sources: of side A, B, ... skip_bad: as ``PreviewSet`` has it. Raises SwapfastError where a face cannot be read: now
    and not in the middle of the run.
    """

    def __init__(
        self,
        model: FaceAutoencoder,
        sources: Sequence[FaceSource],
        config: TrainConfig,
        samples: Samples,
        skip_bad: bool = False,
    ) -> None:
        self._model, self._samples = model, samples
        count = config.preview.images
        self._faces = PreviewLoader(
            [
                PreviewSet(
                    side,
                    source,
                    model.input_size,
                    model.output_sizes[-1],
                    num_images=count,
                    crop=config.crop,
                    mask=config.mask,
                    masked=samples.has_mask,
                    skip_bad=skip_bad,
                )
                for side, source in zip(map(str.upper, SIDES), sources)
            ],
            count,
            num_samples=count,
        )
        next(self._faces)

    def sheet(self) -> np.ndarray:
        """(H, W, 3) uint8 BGR."""
        inputs, targets = next(self._faces)
        return self._samples.get_preview(np.nan_to_num(all_swaps(self._model, inputs)), targets)

    def toggle_mask(self) -> None:
        """Show the mask from the next sheet on if it is hidden, hide it if it is shown."""
        self._samples.toggle_mask_display()


class PreviewWriter(PreviewSheet, Observer):
    """Keeps preview.png in ``folder`` up to date. log: is given the step and the sheet, (H, W, 3) uint8 BGR."""

    def __init__(
        self, *sheet, folder: Path, log: Callable[[int, np.ndarray], None] = lambda step, sheet: None, **more
    ) -> None:
        super().__init__(*sheet, **more)
        self._folder, self._log = folder, log

    def on_save(self, step: int) -> None:
        """Replace the picture by that of ``step``."""
        sheet = self.sheet()
        _, png = cv2.imencode(".png", sheet)
        write_file(self._folder / "preview.png", png.tobytes())
        self._log(step, sheet)

    def on_view(self, viewer: Viewer) -> None:
        """Give the sheet of the model as it is now."""
        viewer(self.sheet(), "Training - A, B")

    def on_toggle_mask(self) -> None:
        """Show the mask from the next sheet on if it is hidden, hide it if it is shown."""
        self.toggle_mask()


class Timelapse(PreviewSheet, Observer):
    """Adds a sheet to ``folder`` each time, 00000250.jpg for step 250: pictures that any program makes a film of.

    At most 4096 px wide and high, and both even, as encoders want them. Raises SwapfastError where the folder cannot be
    written to now; later ``warn`` is told, once, and the run goes on, with pictures again as soon as there is room.
    """

    LONGEST = 4096

    def __init__(self, *sheet, folder: Path, warn: Callable[[str], None] = warnings.warn, **more) -> None:
        super().__init__(*sheet, **more)
        self.folder, self._warn, self._warned = folder, warn, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary_name(folder / "00000000.jpg").touch()
            temporary_name(folder / "00000000.jpg").unlink()
            for left in folder.glob(f"{TEMPORARY}*.jpg"):  # of a run that was killed
                if not writer_lives(left):
                    left.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise SwapfastError(f"--timelapse-output {folder}: {reason}; choose another folder") from error

    def on_save(self, step: int) -> None:
        """Add the picture of ``step``, in the place of an earlier run's."""
        sheet = self.sheet()
        scale = min(1.0, self.LONGEST / max(sheet.shape[:2]))
        height, width = (max(2, round(length * scale / 2) * 2) for length in sheet.shape[:2])
        if (height, width) != sheet.shape[:2]:
            sheet = cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 95])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # it may have been moved away, to make a film of
            write_file(self.folder / f"{step:08}.jpg", jpeg.tobytes())
        except (OSError, SwapfastError) as error:
            if not self._warned:
                self._warn(f"warning: {error}; training goes on without a picture in {self.folder}")
            self._warned = True

    def on_timelapse(self, step: int) -> None:
        """Add the picture of ``step``, though nothing is saved."""
        self.on_save(step)
