"""What the script smaller_batch.py imports: the loaders of one run that goes on with another batch size.

The script's folder lacks it. ``make cases`` puts this one on the path.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from pipelines.loader import TrainLoader
from pipelines.run.run_state import faces_drawn
from pipelines.sampler import Sampler
from swapfast.batch import Batch
from swapfast.checkpoints.folder import Checkpoint
from swapfast.config import TrainConfig
from swapfast.synthetic import synthesize

FACES, SIZE = 24, 64
_folder = tempfile.TemporaryDirectory()  # removed as the process ends


class RunLoader:
    """The loader of one start of the run, made at its first step: it goes on from what the start before saved."""

    saved: Checkpoint | None = None  # by all starts together, after every step

    def __init__(self, backend: str, batch_size: int, rank: int, world: int) -> None:
        config = TrainConfig(batch_size=batch_size)
        self.loader = TrainLoader.from_folders(_draw_faces(), SIZE, (SIZE,), config=config, backend=backend)
        self.rank, self.world = rank, world
        self.sampler: Sampler | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of ``step``. The first that is asked for is the one this start goes on with."""
        if self.sampler is None:
            one = self.loader.sampler
            self.sampler = self.loader.sampler = Sampler(
                one.seed,
                one.counts,
                one.global_batch_size,
                self.rank,
                self.world,
                start_step=step,
                start_ordinal=faces_drawn(RunLoader.saved),
            )
        batch = self.loader.batch(step)
        drawn = dict.fromkeys("ab", self.sampler.drawn_before(step + 1))
        RunLoader.saved = Checkpoint(step + 1, {}, {"faces_drawn": drawn})
        return batch


@functools.cache
def _draw_faces() -> list[Path]:
    synthesize(Path(_folder.name, "faces"), faces=FACES, size=SIZE, pairs=0, workers=1)
    return [Path(_folder.name, "faces", side) for side in "ab"]


mk = RunLoader
