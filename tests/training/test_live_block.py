"""What training shows: the block on a terminal, JSON for programs, warnings alone."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field

import pytest

from swapfast.training import live_block, progress
from swapfast.training.json_lines import JsonLines
from swapfast.training.live_block import LiveBlock, Trend, trend_line
from swapfast.training.progress import ProgressLine, Speed, WarningsOnly

SPEED = Speed(4.0, 128.0, 0.25)
_CODE = re.compile(r"\x1b\[(\d*)([AJK])|(\r)|(\n)|([^\x1b\r\n]+)")


@dataclass
class Screen(io.TextIOBase):
    """A terminal of some columns that knows what the block uses, and breaks lines that are too long."""

    columns: int = 120
    encoding: str = "utf-8"
    rows: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        assert "".join(match[0] for match in _CODE.finditer(text)) == text, f"a terminal code that is unknown: {text!r}"
        for number, code, back, line, plain in _CODE.findall(text):
            if code == "A":
                self.row -= int(number or 1)
                assert self.row >= 0, "above the first line"
            elif code:
                self.rows[self.row] = self.rows[self.row][: self.column]
                if code == "J":
                    del self.rows[self.row + 1 :]
            elif back:
                self.column = 0
            elif line:
                self._next_row()
            for character in plain:
                if self.column == self.columns:
                    self._next_row()
                old = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = old[: self.column] + character + old[self.column + 1 :]
                self.column += 1
        return len(text)

    def _next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")

    def narrow(self, columns: int) -> None:
        """Break the lines anew, as a window that becomes smaller does."""
        self.columns = columns
        self.rows = [row[start : start + columns] for row in self.rows for start in range(0, len(row) or 1, columns)]
        self.row = len(self.rows) - 1


@pytest.fixture
def screen(monkeypatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(live_block, "_size", lambda stream: (stream.columns, 24))
    return made


def _block(screen: Screen, is_ours: bool = True, **options) -> LiveBlock:
    return LiveBlock(screen, 1000, is_ours=lambda stream: is_ours, **options)


def test_the_block_stays_below_the_lines(screen):
    times = iter(range(0, 1000, 30))
    block = _block(screen, has_keys=True, clock=lambda: next(times))
    block.log("faces")
    for step, loss in ((100, 0.5), (200, 0.25)):
        block.losses(step, {"a": loss, "b": 0.5}, SPEED)
    block.saved(200, "[Saved model]")
    block.losses(300, {"a": 0.1, "b": 0.5}, SPEED)
    lines = [row for row in screen.rows if row]
    assert lines[:2] == ["faces", "[Saved model]"] and len(lines) == 6
    assert lines[2].startswith("iteration 300 of 1,000, 30.0 %, 2 min 55 s left, until ")
    assert lines[3] == "Loss A 0.10000 █▄▁   Loss B 0.50000 ▁▁▁"
    assert lines[4] == "4.00 it/s, 128 faces/s, waiting for data 25.0 %"
    assert lines[5] == "saved at 200, 1 min 0 s ago   Enter: save and leave   S: save   P: preview"


def test_the_last_losses_take_the_place_of_the_block(screen):
    block = _block(screen)
    block.losses(7, {"a": 0.5, "b": 0.25}, SPEED)
    block.end(7, "done", 0)
    lines = [row for row in screen.rows if row]
    assert len(lines) == 2 and "[#00007] Loss A: 0.50000, Loss B: 0.25000" in lines[0] and lines[1] == "done"


@pytest.mark.parametrize("columns", [20, 45, 12])
def test_a_terminal_that_becomes_narrower(screen, columns):
    block = _block(screen, has_keys=True)
    block.log("a line")
    block.losses(100, {"a": 0.5, "b": 0.5}, SPEED)
    screen.narrow(columns)
    for step in (200, 300):
        block.losses(step, {"a": 0.5, "b": 0.5}, SPEED)
        lines = [row for row in screen.rows if row]
        assert "".join(lines).startswith("a line") and len(lines) == 4 + -(-len("a line") // columns)


def test_what_another_program_has_written_stays(screen):
    block = _block(screen)
    block.losses(100, {"a": 0.5, "b": 0.5}, SPEED)
    screen.write("$ fg\n")  # the shell's, while the program was stopped
    block.forget()
    block.losses(200, {"a": 0.5, "b": 0.5}, SPEED)
    lines = [row for row in screen.rows if row]
    assert len(lines) == 9 and lines[4] == "$ fg" and lines[5].startswith("iteration 200 ")


def test_in_the_background_there_are_plain_lines_now_and_then(screen):
    times = iter([0.0, 0.0, 3.0, 12.0, 12.0])
    block = _block(screen, is_ours=False, clock=lambda: next(times))
    for step in (1, 2, 3):
        block.losses(step, {"a": 0.5, "b": 0.5}, SPEED)
    assert [row[12:18] for row in screen.rows if row] == ["#00001", "#00003"]


def test_a_terminal_without_the_characters_has_others():
    screen = Screen(encoding="ascii")
    _block(screen).losses(1, {"a": 0.5, "b": 0.5}, SPEED)
    assert all(row.isascii() for row in screen.rows)


def test_a_file_in_place_of_a_terminal_has_no_codes():
    output = io.StringIO()
    line = ProgressLine(output, 10)
    line.start({"model": "tiny"})
    line.losses(1, {"a": 0.5, "b": 0.25}, SPEED)
    assert re.fullmatch(
        r"model         tiny\n\[\d\d:\d\d:\d\d\] \[#00001\] Loss A: 0.50000, Loss B: 0.25000 \| 4.00 it/s, .*\n",
        output.getvalue(),
    )


def test_trend_lines():
    assert trend_line([3, 2, 1], 3) == "█▄▁" or trend_line([3, 2, 1], 3) == "█▅▁"
    assert trend_line([float("nan"), float("inf"), 1.0, 1.0], 5) == "▁▁"
    assert trend_line([]) == "" and len(trend_line(range(1000), 20)) == 20


def test_a_trend_is_of_the_whole_run_and_bounded():
    trend = Trend()
    for value in range(10_000):
        trend.add(float(value))
    assert len(trend.points) <= 240 and trend.points == sorted(trend.points)
    assert trend.points[0] < 100 and trend.points[-1] > 9_800


def test_how_long_the_rest_takes_is_said_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    output = io.StringIO()
    line = ProgressLine(output, 10_000)
    for clock[0], step in ((0.0, 1), (30.0, 101), (60.0, 201), (90.0, 301)):
        line.losses(step, {"a": 0.5, "b": 0.5}, SPEED)
    said = [row for row in output.getvalue().splitlines() if "first minute" in row]
    assert (
        len(said) == 1 and "10,000 iterations: 49 min 0 s more at the speed of the first minute, 3.33 it/s" in said[0]
    )


def test_json_lines():
    output = io.StringIO()
    lines = JsonLines(output, 10)
    lines.start({"model": "tiny"})
    lines.losses(1, {"a": 0.5, "b": float("nan")}, SPEED)
    lines.estimate(1, 2.0, 4.5)
    lines.validation(2, {"a": 0.5, "b": 0.5}, 20.0)
    lines.saved(2, "[Saved model]")
    lines.log("two\nlines")
    lines.end(2, "done", 0)
    events = [json.loads(line, parse_constant=pytest.fail) for line in output.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", "losses", "estimate", "validation", "saved", "line", "end"]
    assert events[1]["loss_a"] == 0.5 and events[1]["loss_b"] is None and events[1]["iterations"] == 10
    assert events[2]["seconds_left"] == 4.5 and events[3]["swap_quality"] == 20.0
    assert events[5]["text"] == "two\nlines" and events[6]["code"] == 0


def test_warnings_alone(capsys):
    line = WarningsOnly()
    line.losses(1, {"a": 0.5, "b": 0.5}, SPEED)
    line.log("side A: 12 faces")
    line.log("warning: few faces")
    assert capsys.readouterr() == ("", "warning: few faces\n")
