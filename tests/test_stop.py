"""Requests to stop or save: what each does, and when it is noticed."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest

from swapfast.errors import SwapfastError
from swapfast.stop import (
    PATIENCE_S,
    StalledWait,
    Stopped,
    StopRequest,
    interruptible,
    parse_duration,
    shown_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("90m", 5400), ("3h30m", 12600), ("1d2h", 93600), ("1h1s", 3601)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds == parse_duration(shown_duration(seconds))


@pytest.mark.parametrize("text", ["", "0", "0h", "3x", "h", "30m3h", "-5", "1.5h", "٣x"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"duration|at least one second"):
        parse_duration(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_and_during_training(number):
    former = signal.signal(number, signal.SIG_DFL)  # SIGHUP is ignored where the tests are started with nohup
    try:
        with StopRequest().listening() as stop, pytest.raises(Stopped, match=signal.Signals(number).name):
            signal.raise_signal(number)
        with StopRequest().listening() as stop:
            stop.training = True
            signal.raise_signal(number)
            assert stop and stop.reason == signal.Signals(number).name
    finally:
        signal.signal(number, former)


def _function_of(path: str, body: str, **names):
    """Return ``call`` as a file at that path would define it."""
    exec(compile(f"def call():\n    {body}", path, "exec"), names)
    return names["call"]


@pytest.mark.parametrize(
    ("called", "waits"),
    [
        ("site-packages/torch/_library/simple_registry.py", True),
        ("site-packages/torch/_inductor/codecache.py", False),
        ("site-packages/sympy/core/expr.py", False),
    ],
)
def test_what_the_compiler_calls_of_torch_is_awaited(called, waits):
    """By way of C++, through which no exception comes: the process would abort. Afterwards the compiler is left."""
    reached = []

    def ask():
        signal.raise_signal(signal.SIGTERM)
        reached.append("asked")

    inner = _function_of(f"/x/{called}", "ask()", ask=ask)
    outer = _function_of(
        "/x/site-packages/torch/_dynamo/utils.py", "inner(); sleep(5); done()", inner=inner, sleep=time.sleep,
        done=lambda: reached.append("never"),
    )  # fmt: skip
    with StopRequest().listening(), pytest.raises(Stopped, match="SIGTERM"):
        outer()
    assert reached == (["asked"] if waits else [])
    with StopRequest().listening(), pytest.raises(Stopped, match="SIGTERM"):
        inner()  # without a compiler nothing is awaited
    assert reached == (["asked"] if waits else [])


def test_sigusr1_asks_for_one_checkpoint_and_no_more():
    with StopRequest().listening() as stop:
        signal.raise_signal(signal.SIGUSR1)
        assert not stop and stop.save_asked() and not stop.save_asked()


def test_nohup_is_heeded():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, former)


def test_handlers_are_put_back():
    former = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)]
    with StopRequest().listening():
        pass
    assert former == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)]


@pytest.mark.slow
def test_a_limit_wakes_up_who_waits_for_a_thread():
    """As the main thread does for the first batch, or for a compiler."""
    never = threading.Event()
    began = time.monotonic()
    with StopRequest().listening() as stop, pytest.raises(Stopped, match="--max-time 1s"):
        stop.started = began - 0.7
        with stop.watching(max_time_s=1):
            never.wait(20)
    assert time.monotonic() - began < 5 and stop.reason == "--max-time 1s"


@pytest.mark.slow
def test_a_stop_file_is_noticed_while_training(tmp_path):
    path = tmp_path / "STOP"
    with StopRequest().listening() as stop, stop.watching(path, 1000):
        stop.training = True
        assert not stop
        path.touch()
        end = time.monotonic() + 5
        while not stop and time.monotonic() < end:
            time.sleep(0.01)
        assert stop.reason == f"--stop-file {path}"


def test_a_stop_file_of_before_is_refused(tmp_path):
    with pytest.raises(SwapfastError, match="is there already; remove it"), StopRequest().watching(tmp_path):
        raise AssertionError("not reached")


@pytest.mark.slow
@pytest.mark.parametrize("is_early", [False, True])
def test_a_wait_that_may_never_end_is_ended_while_training_too(is_early):
    never = threading.Event()
    began = time.monotonic()
    with StopRequest().listening() as stop:
        stop.training = True
        if is_early:
            signal.raise_signal(signal.SIGTERM)
        timer = threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM))
        timer.start()
        with pytest.raises(StalledWait, match="SIGTERM"), interruptible():
            never.wait(20)
        timer.join()
        assert stop.reason == "SIGTERM"
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0  # nothing rings where nobody waits
        assert not never.wait(2 * PATIENCE_S)
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_wait_that_ends_in_time_is_not_disturbed():
    with StopRequest().listening() as stop:
        stop.training = True
        with interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert stop and not threading.Event().wait(2 * PATIENCE_S)
    with interruptible():
        pass  # nobody listens


@pytest.mark.slow
def test_a_time_limit_ends_such_a_wait():
    began = time.monotonic()
    with StopRequest().listening() as stop, stop.watching(max_time_s=1), pytest.raises(StalledWait, match="--max-time"):
        stop.training = True
        with interruptible():
            threading.Event().wait(20)
    assert time.monotonic() - began < 10


def _swallow_a_request() -> None:
    """Be a library that catches whatever is raised, as torch's compiler does in places."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_request_that_somebody_swallows_is_raised_again():
    with StopRequest().listening():
        _swallow_a_request()
        with pytest.raises(Stopped, match="SIGTERM"):
            time.sleep(20)


@pytest.mark.slow
def test_whoever_tidies_up_because_of_a_request_is_not_disturbed():
    with StopRequest().listening(), pytest.raises(Stopped):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            time.sleep(1.2)  # longer than between two looks
            tidy = True
    assert tidy
    time.sleep(0.7)  # nothing comes afterwards, when the former handlers are back
