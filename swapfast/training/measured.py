"""What a run has measured on its held-out faces so far: how much it still gains is told from that."""

from __future__ import annotations

from math import inf, isfinite, nan

from swapfast.batch import SIDES
from swapfast.logs.gain import gain_of
from swapfast.logs.verdict import Measurements, Verdict, spread
from swapfast.swap.quality import QUALITY

PSNR = {side: f"validation/psnr_{side}" for side in SIDES}  # tags; steps.jsonl has validation_psnr_a and so on
GAINS = {side: f"validation/gain_{side}" for side in SIDES}
SWAP_GAIN = "swap/gain"
_FIGURES = (*PSNR.values(), QUALITY)
_GAIN_OF = {**{PSNR[side]: GAINS[side] for side in SIDES}, QUALITY: SWAP_GAIN}
MOST = 64  # measurements that are kept; from there on half of them, but always the best swap's


class Measured:
    """Figures of held-out faces by step, in ``rows`` of [step, dB of A, dB of B, dB of the swap or None].

    The rows are plain values that a checkpoint's JSON keeps, so that a run that goes on knows them.
    """

    def __init__(self, rows: object = None, step: int = 0) -> None:
        """Take the rows of a checkpoint of iteration ``step``; those that are none are left out."""
        self.rows: list[list] = []
        for row in rows if isinstance(rows, list) else ():
            if _is_row(row) and (self.rows[-1][0] if self.rows else -1) < row[0] <= step:
                self.rows.append(list(row))
        self.rows = self.rows[-MOST:]

    def add(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Add a measurement; return the gains in dB per 1,000 iterations by tag, as far as there are any.

        values: by tag; those of PSNR and QUALITY count.
        """
        while self.rows and self.rows[-1][0] >= step:  # the run has gone back
            self.rows.pop()
        self.rows.append([step, *(round(values[tag], 4) if tag in values else None for tag in _FIGURES)])
        if len(self.rows) > MOST:
            best = max(range(MOST), key=lambda place: -inf if (swap := self.rows[place][-1]) is None else swap)
            self.rows = [self.rows[place] for place in spread([row[0] for row in self.rows], best)]
        gains: dict[str, float] = {}
        for tag in _FIGURES:
            gain = gain_of(*self.column(tag))
            if gain is not None:
                gains[_GAIN_OF[tag]] = gain.per_1000
                if gain.per_1000_before is not None:
                    gains[_GAIN_OF[tag].replace("gain", "gain_before")] = gain.per_1000_before
        return gains

    def verdict(self) -> Verdict:
        """Return when it is done, in short sentences."""
        measurements: dict[str, Measurements] = {}
        for tag in _FIGURES:
            figures = measurements[tag.replace("/", "_")] = Measurements()
            for step, value in zip(*self.column(tag)):
                figures.add(step, value)
        return Verdict.of(measurements)

    def column(self, tag: str) -> tuple[list[int], list[float]]:
        """Return the steps and the values of a figure, NaN where it was not measured."""
        index = 1 + _FIGURES.index(tag)
        return [row[0] for row in self.rows], [nan if row[index] is None else row[index] for row in self.rows]


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 1 + len(_FIGURES) or type(row[0]) is not int or row[0] < 0:
        return False
    return all(value is None or (type(value) in (int, float) and isfinite(value)) for value in row[1:])
