"""What long work says of itself where there is no terminal."""

from __future__ import annotations

import io
import time

import pytest

from swapfast.bars import Bars, format_duration, format_rate, log_if_slow


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def _work(update, clock: Clock, total: int, each_s: float) -> None:
    for completed in range(1, total + 1):
        clock.seconds += each_s
        update(completed, total)


def test_a_line_now_and_then_and_one_in_the_end(log, clock):
    with Bars(stream=log, clock=clock) as bars:
        update = bars("decoding faces/a")
        clock.seconds += 1000  # time that other work took is not counted
        _work(update, clock, 50_000, 1 / 2048)
    assert log.getvalue().splitlines() == [
        "decoding faces/a: 20,481 of 50,000, 2,048/s, 14 s left",
        "decoding faces/a: 40,961 of 50,000, 2,048/s, 4 s left",
        "decoding faces/a: all 50,000 in 24 s",
    ]


def test_slow_work_says_how_long_it_will_take(log, clock):
    with Bars(stream=log, interval_s=10, clock=clock) as bars:
        update = bars("drawing faces")
        for completed in (1, 1, 1, 1, 9):
            update(completed, 10_000)
            clock.seconds += 6
    assert log.getvalue().splitlines() == [
        "drawing faces: 1 of 10,000",
        "drawing faces: 9 of 10,000, 0.33/s, 8 h 19 min left",
    ]


def test_short_work_is_not_spoken_of(log, clock):
    with Bars(stream=log, interval_s=10, clock=clock) as bars:
        for name in ("one", "two", "three"):
            _work(bars(name), clock, 99, 0.1)
        bars("known already")(5, 5)
        bars("nothing")
    assert log.getvalue() == ""


def test_every_step_can_have_a_line(log):
    with Bars(stream=log, interval_s=0) as bars:
        _work(bars("reading faces/b"), Clock(), 4, 0)
    lines = log.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:-1]] == ["reading faces/b: 2 of 4", "reading faces/b: 3 of 4"]
    assert lines[-1] == "reading faces/b: all 4 in 0 s"
    assert log.getvalue().replace("\n", "").isprintable(), "no control characters"


def test_silence_where_another_process_speaks(log, clock):
    with Bars(False, stream=log, interval_s=0, clock=clock) as bars:
        _work(bars("decoding"), clock, 5, 60)
    assert log.getvalue() == ""


def test_work_goes_on_where_nobody_reads(clock):
    closed = io.StringIO()
    with Bars(stream=closed, interval_s=0, clock=clock) as bars:
        update = bars("decoding")
        closed.close()
        _work(update, clock, 3, 1)
    assert clock.seconds == 103


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Bars(stream=terminal, interval_s=0, clock=clock) as bars:
        update = bars("decoding faces/a")
        _work(update, clock, 20, 1)
    assert "decoding faces/a" in terminal.getvalue() and "100%" in terminal.getvalue()
    assert " of 20" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (93.4, "1 min 33 s"),
        (7500, "2 h 5 min"),
        (9e6, "2,500 h 0 min"),
    ],
)
def test_times_are_shown_in_two_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(0.034, "0.034"), (2.34, "2.3"), (9.99, "10"), (410.2, "410"), (1234.5, "1,234")]
)
def test_rates_are_shown_as_precisely_as_they_help(rate, text):
    assert format_rate(rate) == text


@pytest.mark.slow
def test_what_is_slow_says_so_once_and_what_is_not_says_nothing():
    lines: list[str] = []
    with log_if_slow(lines.append, "compiling", after_s=0.05):
        deadline = time.monotonic() + 10
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines == ["compiling"]
    with pytest.raises(KeyError), log_if_slow(lines.append, "too late", after_s=0.3):
        raise KeyError
    time.sleep(0.5)
    assert lines == ["compiling"]
