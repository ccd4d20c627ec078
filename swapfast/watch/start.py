"""Starting the page's server: its port, its addresses, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from swapfast.errors import EXIT_FAILED, SwapfastError, shortened
from swapfast.files import not_a_folder, try_lock
from swapfast.stop import StopRequest
from swapfast.watch.access import Token, allowed_hosts
from swapfast.watch.address import FIRST_PORT, PORTS, RECORD
from swapfast.watch.folder import WatchedFolder, unique_names
from swapfast.watch.server import Hub, make_app

MOST_FOLDERS = 32
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NICE = 10  # training goes first


@dataclass(frozen=True)
class Addresses:
    """What a person needs to open the page. ssh: the command to type on another computer, '' where it needs none."""

    address: str
    read_only: str
    ssh: str

    def lines(self, names: Sequence[str]) -> list[str]:
        """Return what is printed."""
        lines = [f"{', '.join(names)}: {self.address}", f"for others, who may only look: {self.read_only}"]
        if self.ssh:
            lines.append(f"from another computer: {self.ssh}   and open the same address there")
        return lines


def bind(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens. port: None for the first free one from FIRST_PORT on.

    Raises SwapfastError naming --host or --port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError, ValueError) as error:
        raise SwapfastError(f"--host {shortened(host)}: is no address of this machine ({error})") from None
    ports = [port] if port is not None else [*range(FIRST_PORT, FIRST_PORT + PORTS), 0]
    for number in ports:
        try:
            return socket.create_server((address[0], number), family=family, backlog=256)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and number != ports[-1]:
                continue
            raise _cannot_listen(host, number, error) from error
    raise AssertionError("the last port is any")


def _cannot_listen(host: str, port: int, error: OSError) -> SwapfastError:
    if error.errno == errno.EADDRINUSE:
        return SwapfastError(f"--port {port}: is taken; give another one, or none for the first free one")
    if error.errno == errno.EACCES:
        return SwapfastError(f"--port {port}: may not be used; give one from 1024 on")
    if error.errno == errno.EADDRNOTAVAIL:
        return SwapfastError(f"--host {host}: is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all")
    return SwapfastError(f"--host {host}, --port {port}: {error.strerror or error}", EXIT_FAILED)


def addresses(host: str, port: int, token: Token) -> Addresses:
    """Return where the page is found."""
    is_local = host in _LOOPBACK
    name = "127.0.0.1" if is_local else socket.gethostname() if host in ("0.0.0.0", "::") else host
    base = f"http://{f'[{name}]' if ':' in name else name}:{port}/?token="
    return Addresses(base + token.whole, base + token.read, _ssh(port) if is_local else "")


def _ssh(port: int) -> str:
    """Return the command that brings the page to another computer.

    Somebody who is here by ssh has shown how this machine is reached.
    """
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
        parts = os.environ.get("SSH_CONNECTION", "").split()
        there, door = (parts[2], parts[3]) if len(parts) == 4 else (socket.gethostname(), "22")
        option = "" if door == "22" else f"-p {door} "
        return f"ssh -N {option}-L {port}:127.0.0.1:{port} {user}@{there}"
    return ""


def check_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the folders without those named twice. Raises SwapfastError where one is no folder."""
    unique = list({os.path.realpath(folder): folder for folder in folders}.values())
    if len(unique) > MOST_FOLDERS:
        raise SwapfastError(f"MODEL: {len(unique)} folders; a page shows up to {MOST_FOLDERS}")
    for folder in unique:
        if not folder.is_dir():
            raise not_a_folder(folder, str(folder), "a model folder")
    return unique


@contextlib.contextmanager
def recorded(folders: Sequence[Path], address: str) -> Iterator[None]:
    """Leave the page's address in each model folder, for its next run, in a file that nobody else may read.

    Its lock says whether the page is still there. A folder that cannot be written to does without.
    """
    files = []
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    for folder in folders:
        with contextlib.suppress(OSError):
            file = os.fdopen(os.open(folder / RECORD, flags, 0o600), "r+b", buffering=0)
            if not try_lock(file):  # another page has it, or the disk has no locks
                file.close()
                continue
            os.fchmod(file.fileno(), 0o600)
            file.truncate(0)
            file.write(json.dumps({"address": address}).encode())
            files.append((folder / RECORD, file))
    try:
        yield
    finally:
        for path, file in files:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(file.fileno())):  # the folder may be another one by now
                    path.unlink()
            file.close()


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to the program."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Change no signal's handler."""
        yield


def watch(
    folders: Sequence[Path],
    host: str,
    port: int | None,
    stop: Callable[[], bool],
    announce: Callable[[Addresses, list[str]], None],
    leave_after_s: float | None = None,
) -> None:
    """Serve the page of these model folders until ``stop``.

    announce: is given the addresses and the folders' names once the page can be opened.
    leave_after_s: leave when for so long nobody has trained and no page was open.
    Raises SwapfastError where a folder is none, or the port cannot be had.
    """
    folders = check_folders(folders)
    listener = bind(host, port)
    with listener:
        token = Token.new()
        with contextlib.suppress(OSError, AttributeError):
            os.nice(_NICE)
        page_addresses = addresses(host, listener.getsockname()[1], token)
        names = unique_names(folders)
        with recorded(folders, page_addresses.address):
            watched = [WatchedFolder(folder, name) for folder, name in zip(folders, names)]
            announce(page_addresses, names)
            asyncio.run(serve(watched, listener, token, allowed_hosts(host), stop, leave_after_s))


async def serve(
    folders: Sequence[WatchedFolder],
    listener: socket.socket,
    token: Token,
    hosts: frozenset[str],
    stop: Callable[[], bool],
    leave_after_s: float | None = None,
) -> None:
    """Serve the page at ``listener`` until ``stop``, or until nobody needs it."""
    hub = Hub(folders)
    config = uvicorn.Config(
        make_app(hub, token, hosts),
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=16384,
    )
    server = _Server(config)
    needed_at = time.monotonic()

    def should_end() -> bool:
        nonlocal needed_at
        if hub.pages or any(folder.is_training for folder in folders):
            needed_at = time.monotonic()
        is_over = leave_after_s is not None and time.monotonic() - needed_at > leave_after_s
        return stop() or is_over or server.should_exit

    serving = asyncio.create_task(server.serve([listener]))
    try:
        await hub.run(should_end)
    finally:
        server.should_exit = True
        await serving


def run_until(stop: StopRequest) -> Callable[[], bool]:
    """Return whether ``stop`` has been asked; signals only note it from here on."""
    stop.training = True  # nothing is to be raised in the middle of an answer
    return lambda: bool(stop)
