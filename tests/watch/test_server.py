"""What the page's server tells of model folders: streams, curves, pictures, requests to runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from watched import make_model, report, sheet, training, wait_until, write_picture

import cli
from swapfast.checkpoints.requests import SNAPSHOT_REQUEST
from swapfast.errors import EXIT_DONE, EXIT_REQUEST
from swapfast.stop import StopRequest
from swapfast.watch import server as server_module
from swapfast.watch import start
from swapfast.watch.access import Token, allowed_hosts
from swapfast.watch.folder import WatchedFolder, unique_names
from swapfast.watch.lock_holder import find_holder
from swapfast.watch.start import bind, serve

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for


def _next(following, kind: str, run: int = 0) -> dict:
    """The next change of ``kind`` of a run."""
    while True:
        event, _, data = following()
        if event == "news":
            for told in data:
                if told["run"] == run and kind in told:
                    return told


def _append(model: Path, text: str) -> None:
    with open(model / "logs/steps.jsonl", "a") as file:
        file.write(text)


def _everything(page, is_so=lambda told: told["state"]["step"] is not None) -> dict:
    """What a stream begins with, once it is so."""

    def first():
        connection, following = page.events()
        told = following()[2][0]
        connection.close()
        return told if is_so(told) else None

    return wait_until(first, "the folder is read")


def test_a_stream_begins_with_everything_and_goes_on_with_what_changes(open_page, model):
    page = open_page(model)
    told = _everything(page)
    assert told["name"] == "model" and told["pictures"] == [100, 200] and len(told["tail"]) > 100
    state = told["state"]
    assert state["status"] == "idle" and state["step"] == 300 and state["about"]["batch_size"] == 8
    assert state["checkpoint"] == 200 and state["time_left_s"] is None and state["has_plain"] and not state["damaged"]
    assert state["latest"]["memory_gpu_mib"] == 2048 and state["latest"]["swap_quality"] == 21.5
    connection, following = page.events()
    assert following()[0] == "everything"
    _append(model, report(301))
    told = _next(following, "curves")
    assert told["state"]["step"] == 301 and "[#00301]" in told["tail"][-1]
    assert told["curves"]["loss_a"][-1][:2] == [301, pytest.approx(1 / (1 + 3.01), rel=1e-4)]
    write_picture(model / "preview_history/00000300.jpg", sheet())
    assert _next(following, "pictures")["pictures"] == [100, 200, 300]
    write_picture(model / "preview.png", sheet((1, 2, 3)))
    assert _next(following, "state")["state"]["preview"] != state["preview"]
    connection.close()


def test_a_stream_that_broke_goes_on_where_it_was(open_page, model):
    page = open_page(model)
    _everything(page)
    connection, following = page.events()
    _, first_id, _ = following()
    _append(model, report(301))
    event, id, _ = following()
    assert event == "news" and id != first_id
    connection.close()
    _append(model, report(302))
    connection, following = page.events(last_id=id)
    event, _, data = following()
    assert event == "news" and data[0]["state"]["step"] == 302
    connection.close()
    for other in ("", "x-1", f"{id.split('-')[0]}-99999", f"{id.split('-')[0]}-x", "0" * 500):  # of another server
        connection, following = page.events(last_id=other)
        assert following()[0] == "everything"
        connection.close()


def test_curves_are_those_of_the_log_and_repeated_steps_are_gone(open_page, model):
    page = open_page(model)
    _everything(page)
    curves = json.loads(page.ask("GET", "/curves?run=0")[2])
    assert curves["width"] == 1 and len(curves["points"]["loss_b"]) == 300
    connection, following = page.events()
    _append(model, json.dumps({"run_from": 100, "time": 5}) + "\n" + report(101))
    assert _next(following, "curves_anew")["state"]["step"] == 101
    points = json.loads(page.ask("GET", "/curves?run=0")[2])["points"]["loss_b"]
    assert [point[0] for point in points] == list(range(1, 102))
    connection.close()


def test_pictures_are_served_with_and_without_the_mask(open_page, model):
    page = open_page(model)
    _everything(page)

    masked, plain = (page.ask("GET", f"/picture?run=0&step=200{mask}")[2] for mask in ("", "&mask=0"))
    assert masked == (model / "preview_history/00000200.jpg").read_bytes()
    assert plain == (model / "preview_history/00000200-plain.jpg").read_bytes()
    assert page.ask("GET", "/picture?run=0")[2] == (model / "preview.png").read_bytes()
    assert page.ask("GET", "/picture?run=0&mask=0")[2] == plain, "the newest one without the mask"
    status, headers, _ = page.ask("GET", "/picture?run=0")
    assert status == 200 and headers["Content-Type"] == "image/png"
    tag = headers["ETag"]
    assert page.ask("GET", "/picture?run=0", {"If-None-Match": tag})[0] == 304
    write_picture(model / "preview.png", sheet((9, 9, 9)))
    status, headers, body = page.ask("GET", "/picture?run=0", {"If-None-Match": tag})
    assert status == 200 and headers["ETag"] != tag and body == (model / "preview.png").read_bytes()


def test_what_is_no_picture_is_not_shown(open_page, model, tmp_path):
    """A model folder of another hand must not show files of this machine."""
    page = open_page(model)
    (tmp_path / "secret.png").write_bytes((model / "preview.png").read_bytes())
    preview = model / "preview.png"

    def lies(make) -> None:
        preview.unlink(missing_ok=True)
        make()
        assert page.ask("GET", "/picture?run=0")[0] == 404

    lies(lambda: preview.symlink_to(tmp_path / "secret.png"))
    lies(lambda: preview.write_text("root:x:0:0"))
    lies(lambda: os.mkfifo(preview))
    lies(lambda: os.truncate(os.open(preview, os.O_CREAT | os.O_RDWR), 65 << 20))
    preview.unlink()
    preview.mkdir()
    assert page.ask("GET", "/picture?run=0")[0] == 404


def test_a_timelapse_is_the_history_where_there_is_no_other(open_page, model):
    shutil.rmtree(model / "preview_history")
    write_picture(model / "timelapse/00000050.jpg", sheet())
    page = open_page(model)
    assert _everything(page)["pictures"] == [50]
    assert page.ask("GET", "/picture?run=0&step=50")[2] == (model / "timelapse/00000050.jpg").read_bytes()


def test_a_folder_that_is_deleted_is_told_of_and_found_again(open_page, model):
    page = open_page(model)
    _everything(page)
    connection, following = page.events()
    following()
    shutil.rmtree(model)
    told = _next(following, "state")
    assert told["state"]["status"] == "gone" and told["state"]["preview"] is None and told["pictures"] == []
    assert page.ask("GET", "/picture?run=0")[0] == 404 and page.ask("GET", "/curves?run=0")[0] == 200
    assert page.post({"run": 0, "do": "stop"})[0] == 409
    make_model(model, steps=7)
    while True:
        told = _next(following, "state")
        if told["state"]["step"] == 7:
            break
    assert told["state"]["status"] == "idle"
    assert len(json.loads(page.ask("GET", "/curves?run=0")[2])["points"]["loss_a"]) == 7
    connection.close()


def test_a_folder_that_the_system_refuses_is_gone():
    """As a network share that is away, which answers with another error than that there is none."""
    folder = WatchedFolder(Path("/" + "x" * 300), "x")  # a name too long
    assert folder.poll() is False and folder.state()["status"] == "gone"


def test_an_empty_folder_shows_nothing_yet(open_page, tmp_path):
    page = open_page(tmp_path)
    told = _everything(page, lambda told: True)
    assert told["state"]["step"] is None and told["pictures"] == [] and told["tail"] == []


def test_ages_follow_no_clock_that_jumps(model, monkeypatch):
    folder = WatchedFolder(model, "model")
    now = [time.time() - 7200]  # the clock was set back two hours since the checkpoint was written
    monkeypatch.setattr(time, "time", lambda: now[0])
    folder.poll()
    assert folder.ages()["checkpoint"] == 0
    now[0] += 86400 * 365
    folder.poll()
    assert folder.ages()["checkpoint"] < 60 and folder.ages()["log"] < 60
    _append(model, report(10**6).replace("1701000000", "5"))  # a line from 1970
    folder.poll()
    assert folder.follower.step == 10**6 and folder.state()["damaged"] == 0


def test_a_run_is_found_by_its_lock_and_asked_by_signals(open_page, model):
    page = open_page(model)
    with training(model) as process:
        assert find_holder(model / ".lock").pid == process.pid
        told = _everything(page, lambda told: told["state"]["status"] == "training")
        assert told["state"]["time_left_s"] == 70, "700 of 1,000 iterations at 10 a second"
        assert page.post({"run": 0, "do": "save"})[0] == 200
        wait_until((model / "saved").exists, "SIGUSR1 came")
        assert not (model / SNAPSHOT_REQUEST).exists()
        (model / "saved").unlink()
        assert page.post({"run": 0, "do": "snapshot"})[0] == 200
        wait_until((model / "saved").exists, "SIGUSR1 came")
        assert (model / SNAPSHOT_REQUEST).exists()
        assert page.post({"run": 0, "do": "stop"})[0] == 200
        assert process.wait(30) == 3 and (model / "stopped").exists()
    (model / SNAPSHOT_REQUEST).unlink()
    for request in ("save", "snapshot", "stop"):
        status, _, body = page.post({"run": 0, "do": request})
        assert status == 409 and b"nobody trains" in body
    assert not (model / SNAPSHOT_REQUEST).exists()
    _everything(page, lambda told: told["state"]["status"] == "idle" and told["state"]["time_left_s"] is None)


def test_a_process_that_a_signal_would_kill_is_not_sent_one(open_page, model):
    page = open_page(model)
    with training(model, "is deaf") as process:
        for request in ("save", "snapshot", "stop"):
            status, _, body = page.post({"run": 0, "do": request})
            assert status == 409 and b"does not answer" in body
        assert process.poll() is None and not (model / SNAPSHOT_REQUEST).exists()


def test_names_tell_folders_apart():
    folders = [Path("/runs/a/model"), Path("/runs/b/model"), Path("/runs/other"), Path("/")]
    assert unique_names(folders) == ["a/model", "b/model", "other", "/"]


def test_more_pages_than_a_limit_are_refused(open_page, model, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_PAGES", 2)
    page = open_page(model)
    streams = [page.events() for _ in range(2)]
    assert page.ask("GET", "/events")[0] == 503
    for connection, _ in streams:
        connection.close()  # browsers that leave

    def is_free():
        connection = None
        with contextlib.suppress(AssertionError):
            connection, _ = page.events()
        return connection

    wait_until(is_free, "the server has noticed").close()


def test_a_log_that_grows_much_tells_a_slow_page_everything_again(open_page, model, monkeypatch):
    monkeypatch.setattr(server_module, "_KEPT", 2)
    page = open_page(model)
    _everything(page)
    connection, following = page.events()
    _, id, _ = following()
    connection.close()
    for step in (301, 302, 303):
        _append(model, report(step))
        _everything(page, lambda told, step=step: told["state"]["step"] == step)
    connection, following = page.events(last_id=id)
    assert following()[0] == "everything"
    connection.close()


# --- the command ------------------------------------------------------------------------------------------------


class _Leaving(StopRequest):
    """Asked to stop as soon as the server looks: what is tried is the start."""

    def __bool__(self) -> bool:
        return self.training


def _watch(*words) -> int:
    return cli.main(["watch", *map(str, words)], stop=_Leaving())


def test_the_command_prints_where_the_page_is(model, capsys, monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert _watch(model) == EXIT_DONE
    address, read_only, ssh = capsys.readouterr().out.splitlines()
    assert address.startswith("model: http://127.0.0.1:84")
    token = address.partition("?token=")[2]
    assert read_only.endswith("?token=" + token.partition(".")[0]) and "." in token
    port = address.partition("127.0.0.1:")[2].partition("/")[0]
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in ssh
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50000 10.0.0.7 2222")
    assert _watch(model, "--json") == EXIT_DONE
    found = json.loads(capsys.readouterr().out)
    assert "-p 2222 " in found["ssh"] and found["ssh"].endswith("@10.0.0.7") and "?token=" in found["address"]
    assert not (model / ".watch").exists()


def test_a_wrong_request_is_one_line(model, tmp_path, capsys, open_page):
    (tmp_path / "file").touch()
    taken = open_page(model).port
    wrong = {
        (tmp_path / "missing",): "no such folder",
        (tmp_path / "file",): "is a file",
        (model, "--port", taken): "--port .*taken",
        (model, "--port", 70000): "must lie within 1 and 65535",
        (model, "--port", 0): "at least 1",
        (model, "--port", "x"): "whole number",
        (model, "--host", "no.such.host.invalid"): "--host .*no address of this machine",
        (model, "--host", "192.0.2.1"): "--host 192.0.2.1: is no address of this machine",
        (model, "--host", "x" * 300): "--host",
        (model, "--leave-after", "soon"): "--leave-after .*no duration",
        (): "MODEL",
    }
    for words, message in wrong.items():
        assert _watch(*words) == EXIT_REQUEST, words
        complaint = capsys.readouterr().err
        assert complaint.startswith("swapfast: ") and complaint.count("\n") == 1, complaint
        assert re.search(message, complaint), complaint


def test_without_a_port_the_next_free_one_is_taken(model, capsys, monkeypatch, open_page):
    monkeypatch.setattr(start, "FIRST_PORT", open_page(model).port)
    assert _watch(model, "--json") == EXIT_DONE
    assert f":{start.FIRST_PORT}/" not in json.loads(capsys.readouterr().out)["address"]


def test_a_page_that_nobody_needs_leaves(model):
    """After the time that it was given, without a run and without an open page."""
    with bind("127.0.0.1", 0) as listener:
        work = serve([WatchedFolder(model, "m")], listener, Token.new(), allowed_hosts("127.0.0.1"), bool, 0.1)
        asyncio.run(work)


@pytest.mark.slow
def test_signals_end_it_with_0(model):
    """In a process of its own, as from a shell."""
    process = subprocess.Popen(
        [sys.executable, "-m", "swapfast", "watch", str(model), "--json"],
        stdout=subprocess.PIPE,
        cwd=Path(cli.__file__).parent,
    )
    assert json.loads(process.stdout.readline())["address"]
    assert json.loads((model / ".watch").read_text())["address"] and (model / ".watch").stat().st_mode & 0o777 == 0o600
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == EXIT_DONE and not (model / ".watch").exists()
    process.stdout.close()
