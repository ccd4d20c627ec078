"""Makes the preview sheet: its faces, the picture in the model folder, and the timelapse."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines.dataset import get_label, open_source
from pipelines.fill import UNUSABLE, FaceSource
from pipelines.sampler import Sampler
from swapfast.batch import SIDES
from swapfast.config import CropConfig, MaskConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face, shrink, spread_indices
from swapfast.faces.masks import training_masks
from swapfast.files import TEMPORARY, code_of, is_recent, open_new, temporary_name, write_file, writer_lives
from swapfast.models import FaceAutoencoder
from swapfast.preview.history import PreviewHistory
from swapfast.preview.samples import Samples
from swapfast.swap.apply import all_swaps
from swapfast.system import available_cores
from swapfast.threads import ThreadPool
from swapfast.training.observers import Observer, Training, Viewer


class PreviewSet:
    """One side's faces for the preview: item i is (input, target).

    input: (3, h, w) float32 in 0..1 in ``color_order``, for the model.
    target: (H, W, 4) float32 in 0..1 BGR, the face at coverage 100 % to a px, with its mask, which is 1 everywhere
        unless ``masked``. The model makes its central ``output_size`` px, at the same scale.

    num_images: number of faces, spread evenly over the folder; 0 for all.
    skip_bad: replaces an unreadable face by the next one of the folder.
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
        self.skip_bad = skip_bad
        self._margin = round(output_size / (self.crop.coverage / 100) / 2) - output_size // 2
        self.full_size = output_size + 2 * self._margin

    @classmethod
    def from_folder(
        cls,
        side: str,
        image_folder: str | Path,
        input_size: int,
        output_size: int,
        color_order: str = "bgr",
        num_images: int = 0,
        crop: CropConfig | None = None,
        mask: MaskConfig | None = None,
        masked: bool = True,
    ) -> PreviewSet:
        """Return the set of a folder or prepared set. Raises SwapfastError listing every bad file."""
        source = open_source(Path(image_folder))
        source.folder.require_all_good()
        return cls(side, source, input_size, output_size, color_order, num_images, crop, mask, masked)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (input, target). Raises SwapfastError naming a file that cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        member = int(self.chosen[index])
        tries = len(self.source) if self.skip_bad else 1
        for offset in range(tries):
            candidate = (member + offset) % len(self.source)
            try:
                return self._item(candidate)
            except UNUSABLE as error:
                if offset == tries - 1:
                    path = self.source.folder.records[candidate].path
                    raise SwapfastError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
        raise AssertionError("there is at least one try")

    def _item(self, member: int) -> tuple[np.ndarray, np.ndarray]:
        record, picture = self.source.picture(member)
        face = shrink(crop_face(record, picture, self.crop, max(self.input_size, self.output_size)), self.input_size)
        if self.color_order == "rgb":
            face = face[..., ::-1]
        target = np.full((self.full_size, self.full_size, 4), 255, np.uint8)
        target[..., :3] = crop_face(record, picture, self.crop, self.output_size, self._margin)
        if self.masked:
            target[..., 3:] = training_masks(record, self.crop, self.mask, self.output_size, ["face"], self._margin)
        return np.ascontiguousarray(face.transpose(2, 0, 1), np.float32) / 255, target.astype(np.float32) / 255


class PreviewLoader:
    """An iterator over the preview's faces of all sides.

    ``next(loader)`` returns inputs (sides, n, 3, h, w) and targets (sides, n, H, W, 4); see ``PreviewSet``.

    sets: one per side.
    batch_size: n.
    num_samples: 0 gives new faces every time, in the order of ``seed``. Otherwise the first n faces of each set are
        decoded once and returned every time.
    """

    def __init__(self, sets: Sequence[PreviewSet], batch_size: int, num_samples: int = 0, seed: int = 1) -> None:
        self.sets = sets
        self.static = num_samples > 0
        self.sampler = Sampler(seed, tuple(map(len, sets)), num_samples or batch_size)
        self.step = 0
        self._static_batch: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def from_folders(
        cls,
        input_size: int,
        output_size: int,
        color_order: str,
        input_folders: Sequence[str | Path],
        batch_size: int,
        num_samples: int = 0,
        crop: CropConfig | None = None,
        mask: MaskConfig | None = None,
    ) -> PreviewLoader:
        """Return the loader of folders of faces or prepared sets, one per side; see ``PreviewSet.from_folder``."""
        sides = len(input_folders)
        sets = [
            PreviewSet.from_folder(
                get_label(number, sides), folder, input_size, output_size, color_order, num_samples, crop, mask
            )
            for number, folder in enumerate(input_folders)
        ]
        return cls(sets, batch_size, num_samples)

    def get_loader(self) -> PreviewLoader:
        """Return the batches of all sides, as ``iter`` does."""
        return self

    def __iter__(self) -> PreviewLoader:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        if self._static_batch is not None and self.static:
            return self._static_batch
        if self.static:
            ids: Sequence[np.ndarray] | np.ndarray = [
                np.arange(self.sampler.batch_size) % len(side) for side in self.sets
            ]
        else:
            ids = self.sampler.ids(self.step)
        self.step += 1
        members = [(side, int(index)) for side, indices in zip(self.sets, ids) for index in indices]
        with ThreadPool(available_cores()) as pool:
            items = list(pool.map(lambda item: item[0][item[1]], members))
        shape = (len(self.sets), -1)
        inputs, targets = (np.stack(part).reshape(*shape, *part[0].shape) for part in zip(*items))
        self._static_batch = inputs, targets
        return inputs, targets


class PreviewSheet:
    """A sheet of what ``model`` makes of the same few faces of each side.

    sources: of side A, B, ...
    skip_bad: see ``PreviewSet``.
    prepare: called before the model is asked for a sheet; brings what it keeps beside its weights up to date.
    The faces are read at once. Raises SwapfastError if one cannot be read.
    """

    def __init__(
        self,
        model: FaceAutoencoder,
        sources: Sequence[FaceSource],
        config: TrainConfig,
        samples: Samples,
        skip_bad: bool = False,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._samples, self._prepare = model, samples, prepare
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
        """Return the sheet of the current model, (H, W, 3) uint8 BGR."""
        return self._samples.get_preview(*self._predictions())

    def both_sheets(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the sheet of the current model with the mask's tint and without; None where there is no mask."""
        predictions = self._predictions()
        samples = copy.copy(self._samples)
        samples.display_mask = samples.has_mask
        sheet = samples.get_preview(*predictions)
        if not samples.has_mask:
            return sheet, None
        samples.toggle_mask_display()
        return sheet, samples.get_preview(*predictions)

    @property
    def shows_mask(self) -> bool:
        """Whether ``sheet`` shows the mask."""
        return self._samples.display_mask

    def _predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the current model makes of the faces, and these, as ``Samples.get_preview`` takes them."""
        inputs, targets = next(self._faces)
        self._prepare()
        return np.nan_to_num(all_swaps(self._model, inputs)), targets

    def toggle_mask(self) -> None:
        """Switch the display of the mask, from the next sheet on."""
        self._samples.toggle_mask_display()


class PreviewWriter(PreviewSheet, Observer):
    """Keeps preview.png in ``folder`` up to date, and the history of it.

    log: called with the step and the sheet, (H, W, 3) uint8 BGR. history: keeps some of the sheets, None for none.
    """

    def __init__(
        self,
        *arguments: Any,
        folder: Path,
        log: Callable[[int, np.ndarray], None] = lambda step, sheet: None,
        history: PreviewHistory | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._folder, self._log, self._history = folder, log, history
        self._is_wanted = threading.Event()

    def refresh_preview(self) -> None:
        """Write preview.png anew after the step in progress; the history and the logs keep those of saves alone."""
        self._is_wanted.set()

    def on_step(self, training: Training) -> None:
        """Write preview.png where somebody asked for it."""
        if self._is_wanted.is_set():
            self._is_wanted.clear()
            self._write(self.sheet())

    def _write(self, sheet: np.ndarray) -> None:
        _, png = cv2.imencode(".png", sheet)
        write_file(self._folder / "preview.png", png.tobytes())

    def on_save(self, step: int) -> None:
        """Write the sheet of ``step`` to preview.png and to the history."""
        self._log(step, self.draw(step))

    def draw(self, step: int) -> np.ndarray:
        """Write the sheet of the current model, of ``step``; return it."""
        masked, plain = (self.sheet(), None) if self._history is None else self.both_sheets()
        sheet = masked if plain is None or self.shows_mask else plain
        self._write(sheet)
        if self._history is not None:  # behind preview.png: the newer one of both is the one to show
            self._history.add(step, masked, plain)
        return sheet

    def on_view(self, viewer: Viewer) -> None:
        """Give the sheet of the current model to ``viewer``."""
        viewer(self.sheet(), "Training - A, B")

    def on_toggle_mask(self) -> None:
        """Switch the display of the mask, from the next sheet on."""
        self.toggle_mask()


class Timelapse(PreviewSheet, Observer):
    """Adds sheets to ``folder``, such as 00000250.jpg for step 250, from which any program can make a film.

    The sheets have even sizes of at most 4096 px, as video encoders need. Raises SwapfastError if the folder cannot be
    written to at the start. A later failure is reported to ``warn`` once; the run goes on and writes again if it can.
    """

    LONGEST = 4096

    def __init__(
        self, *arguments: Any, folder: Path, warn: Callable[[str], None] = warnings.warn, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.folder, self._warn, self._warned = folder, warn, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial = temporary_name(folder / "00000000.jpg")
            open_new(trial).close()
            trial.unlink()
            for leftover in folder.glob(f"{TEMPORARY}*.jpg"):  # of a run that was killed
                if leftover.is_file() and not is_recent(leftover) and not writer_lives(leftover):
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SwapfastError(
                f"--timelapse-output {folder}: {reason}; choose another folder", code_of(error)
            ) from error

    def on_save(self, step: int) -> None:
        """Write the sheet of ``step``, replacing that of an earlier run."""
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
        """Write the sheet of ``step``, although nothing is saved."""
        self.on_save(step)
