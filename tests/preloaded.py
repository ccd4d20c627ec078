"""Starts Python programs in processes that have torch and its like loaded already: a tenth of a second, not four.

``Popen`` and ``run`` stand for those of ``subprocess``. A process that has imported the packages waits for each worker
of the tests, and what is to be started is its fork: a process of its own with its own pid, streams, folder,
environment and exit code, which runs the same code from its first line. Whatever a fork cannot have, such as another
variable that is read before Python runs, is started the long way.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib.util
import inspect
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("numpy", "cv2", "torch", "torch._dynamo", "numba", "nvidia.dali.fn", "nvidia.dali.types", "kornia_rs", "xxhash"),
    *("tensorboard.compat.proto.event_pb2", "tensorboard.compat.tensorflow_stub.pywrap_tensorflow"),
    *("tensorboard.summary.writer.record_writer", "safetensors.torch", "safetensors.numpy"),
)
# Read by the interpreter or by a library as it is loaded, which a fork is too late for.
_READ_AT_START = (
    "PYTHON",
    "LC_",
    "LANG",
    "LD_",
    "OMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
    "NUMBA_",
    "ATEN_",
    "ONEDNN_",
    "TRITON_",
)
_FOLLOWED = ("PYTHON", "PYTHONPATH", "PYTHONIOENCODING", "OMP_NUM_THREADS")
_PR_SET_CHILD_SUBREAPER = 36
_STREAMS = (0, 1, 2)


# --- the side of the tests --------------------------------------------------------------------------------


class Popen(subprocess.Popen):
    """Start ``[sys.executable, "-m", MODULE, ...]``, ``[..., "-c", CODE]`` or ``[..., FILE, ...]`` as a fork.

    ``terminal`` makes standard input the terminal of a new session, and ``closed`` names streams (0, 1, 2) that the
    program finds closed. With ``torn_down`` Python takes itself to pieces at the end as always: 0.3 s in which signals
    come too. Without, the fork is gone once its threads have ended and what is to be done at the exit is done.
    """

    def __init__(
        self,
        *arguments,
        terminal: bool = False,
        closed: tuple[int, ...] = (),
        torn_down: bool = False,
        **options,
    ):
        self._request = {"terminal": terminal, "closed": closed, "torn_down": torn_down}
        super().__init__(*arguments, **options)

    def _execute_child(self, *arguments):
        start = inspect.signature(super()._execute_child).bind(*arguments).arguments
        environment = dict(os.environ if start["env"] is None else start["env"])
        if not _can_be_forked(start, environment):
            assert not self._request["terminal"], "only a fork can be given a terminal"
            assert not self._request["closed"], "only a fork can be given closed streams"
            return super()._execute_child(*arguments)
        request = {
            "words": [os.fsdecode(word) for word in start["args"][1:]],
            "folder": os.fsdecode(start["cwd"] or os.getcwd()),
            "environment": {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()},
            "session": bool(start["start_new_session"]),
        } | self._request
        pipes = [start[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        streams = [end if end != -1 else stream for end, stream in zip(pipes[0::3] + pipes[5:], _STREAMS, strict=True)]
        self.pid = _fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def run(words: list[str], *, timeout: float | None = None, **options) -> subprocess.CompletedProcess:
    """Run a program to its end, as ``subprocess.run`` does."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(words, **options) as process:
        try:
            out, complaints = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, complaints)


def _can_be_forked(start: dict, environment: dict[str, str]) -> bool:
    words = start["args"]
    if sys.platform != "linux" or isinstance(words, str | bytes | os.PathLike) or len(words) < 2:
        return False
    known = words[0] == sys.executable and (words[1] in ("-m", "-c", "-u") or words[1][0] != "-")
    plain = not (start.get("preexec_fn") or start.get("shell") or start.get("pass_fds"))
    names = {name for name in (*environment, *os.environ) if name.startswith(_READ_AT_START) and name not in _FOLLOWED}
    return known and plain and all(environment.get(name) == os.environ.get(name) for name in names)


_server: socket.socket | None = None


def _fork(request: dict, streams: list[int]) -> int:
    """Ask for a process and return its pid. Its parent is the caller, who can wait for it."""
    global _server
    if _server is None:
        _server = _start_server()
    with _adopted_orphans():
        content = json.dumps(request).encode()
        files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
        _server.sendmsg([len(content).to_bytes(4, "big")], files)
        _server.sendall(content)
        return int.from_bytes(_server.recv(4, socket.MSG_WAITALL), "big")


def _start_server() -> socket.socket:
    ours, theirs = socket.socketpair()
    compiled = tempfile.TemporaryDirectory()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.preloaded", str(theirs.fileno()), compiled.name],
        cwd=ROOT,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()
        compiled.cleanup()

    atexit.register(end)
    return ours


@contextlib.contextmanager
def _adopted_orphans():
    """Make this process the parent of those whose own parent ends meanwhile: of the fork, whose parent ends at once."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


# --- the side of the programs -----------------------------------------------------------------------------


def _serve(connection: socket.socket) -> dict | None:
    """Fork for each request. Return None as the tests are over, and in each fork what it is to run."""
    while True:
        request = _receive(connection)
        if request is None:
            return None
        reader, writer = os.pipe()
        parent = os.fork()
        if parent == 0:
            between = os.getpid()
            child = os.fork()
            if child:
                os.write(writer, child.to_bytes(4, "big"))
                os._exit(0)
            while os.getppid() == between:  # a program may ask who its parent is
                time.sleep(0.0005)
            os.close(reader)
            os.close(writer)
            connection.close()
            return request
        os.waitpid(parent, 0)  # from here on the fork is the child of the tests
        pid = os.read(reader, 4)
        for descriptor in (reader, writer, *request["streams"]):
            os.close(descriptor)
        connection.sendall(pid)


def _receive(connection: socket.socket) -> dict | None:
    """Receive a request with its three streams, None where whoever asked is gone."""
    size, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(3 * 4))
    if len(size) < 4:
        return None
    request = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    return request | {"streams": list(array.array("i", ancillary[0][2]))}


def _become(request: dict) -> None:
    """Make of the fork what a start with these streams, this folder and environment would have made."""
    for stream, descriptor in zip(_STREAMS, request["streams"], strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    if request["session"]:
        os.setsid()
    for number in request.get("ignored", ()):
        signal.signal(number, signal.SIG_IGN)
    for kind, limits in request.get("limits", ()):
        resource.setrlimit(kind, limits)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for stream in request["closed"]:
        os.close(stream)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    given = {"encoding": encoding or None, "errors": errors or None}
    sys.stdin = sys.__stdin__ = _open_stream(0, "r", **given)
    sys.stdout = sys.__stdout__ = _open_stream(1, "w", **given)
    sys.stderr = sys.__stderr__ = _open_stream(2, "w", buffering=1, **given | {"errors": "backslashreplace"})
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))


def _open_stream(stream: int, mode: str, **options) -> TextIO | None:
    """Open a standard stream as Python does at its start: None where it is closed."""
    try:
        return open(stream, mode, closefd=False, **options)
    except OSError:
        return None


def _run_to_the_end(request: dict) -> None:
    """Run a program and end the process as it ends. Returns where Python itself has something to do or to say yet."""
    try:
        _run(request["words"])
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise  # Python prints it
        code = end.code or 0
    if request["torn_down"]:
        sys.exit(code)
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Python tells of it
    os._exit(code & 0xFF)


def _run(words: list[str]) -> None:
    """Run ``-m MODULE``, ``-c CODE`` or a file as Python's own command line does, unbuffered behind ``-u``."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    main = types.ModuleType("__main__")
    sys.path[:] = [path for path in sys.path if path not in (str(ROOT), "")]
    _customize(paths)
    if words[0] == "-m":
        sys.path[:0] = [os.getcwd(), *paths]
        spec = importlib.util.find_spec(words[1])
        if spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{words[1]}.__main__")
        code, main.__spec__, main.__package__, main.__file__ = (
            spec.loader.get_code(spec.name),
            spec,
            spec.parent,
            spec.origin,
        )
        sys.argv = [spec.origin, *words[2:]]
    elif words[0] == "-c":
        sys.path[:0] = ["", *paths]
        code = compile(words[1], "<string>", "exec")
        sys.argv = ["-c", *words[2:]]
    else:
        sys.path[:0] = [str(Path(words[0]).resolve().parent), *paths]
        code, main.__file__ = compile(Path(words[0]).read_bytes(), words[0], "exec"), words[0]
        sys.argv = words
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main  # multiprocessing has its own name for it
    exec(code, main.__dict__)


def _customize(paths: list[str]) -> None:
    """Run the ``sitecustomize`` of a folder of PYTHONPATH, as Python does before anything else."""
    for path in paths:
        if os.path.exists(os.path.join(path, "sitecustomize.py")):
            spec = importlib.util.spec_from_file_location("sitecustomize", os.path.join(path, "sitecustomize.py"))
            sys.modules["sitecustomize"] = module = importlib.util.module_from_spec(spec)
            return spec.loader.exec_module(module)


def fork_own_programs() -> None:
    """Let what this process starts with ``subprocess.Popen`` from here on be forks of it as it is now.

    For a program such as torchrun whose own processes are to be preloaded as well.
    """
    global _server
    _server, theirs = socket.socketpair()
    if os.fork() == 0:
        _server.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in _STREAMS:
            os.dup2(nothing, stream)  # whoever reads what this process prints waits for its end, not for this one's
        os.close(nothing)
        if request := _serve(theirs):
            _become(request)
            _run_to_the_end(request)
        sys.exit()
    theirs.close()
    subprocess.Popen = Popen


# --- programs that a shell starts -------------------------------------------------------------------------

# Stands for a program in a script: asks for a fork, hands signals on to it, and ends as it ends. Where the script has
# set what a fork is too late for, it starts the program itself. A fork of Python that is told to run this file has its
# packages already, and becomes the program.
STAND_IN = """#!{python} -ES
import array, contextlib, json, os, resource, signal, socket, sys
words = [*{words!r}, *sys.argv[1:]]
if "torch" in sys.modules:
    sys.modules["tests.preloaded"]._run(words)
    sys.exit()
if folder := {made!r}.get(tuple(sys.argv[1:])):
    import shutil
    shutil.copytree(folder, sys.argv[2])
    sys.exit()
start = {start!r}
names = {{name for name in (*os.environ, *start) if name.startswith({read_at_start!r})}} - {{*{followed!r}}}
other_start = any(os.environ.get(name) != start.get(name) for name in names)
if other_start or not words or words[0][:1] == "-" and words[0] not in ("-m", "-c", "-u"):
    os.execv({python!r}, [{python!r}, *words])
closed = []
for stream in range(3):
    try:
        os.fstat(stream)
    except OSError:
        closed.append(stream)
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
kinds = [resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_CPU]
request = json.dumps({{
    "words": words, "folder": os.getcwd(), "environment": dict(os.environ), "session": False, "terminal": False,
    "closed": closed, "torn_down": {torn_down!r},
    "ignored": [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN],
    "limits": [(kind, resource.getrlimit(kind)) for kind in kinds],
}}).encode()
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
server.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", range(3)))])
server.sendall(request)
pid = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big")
def pass_on(number, _):
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)
for number in numbers:
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, pass_on)
signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
for stream in range(3):
    os.close(stream)
status = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big")
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""


@contextlib.contextmanager
def stand_in(
    programs: dict[Path, list[str]],
    read_at_start: tuple[str, ...] = (),
    made: dict[tuple[str, ...], Path] | None = None,
    torn_down: bool = False,
) -> Iterator[None]:
    """Let each of ``programs`` be an executable that runs ``python WORDS`` as a fork, for as long as the block lasts.

    read_at_start: further beginnings of variables with which a program is started the long way.
    made: by arguments, the folder that a program makes with them: it copies that one instead, to its second argument.
    """
    read_at_start += _READ_AT_START
    start = {name: value for name, value in os.environ.items() if name.startswith(read_at_start)}
    path = str(next(iter(programs)).with_name("server"))
    for program, words in programs.items():
        text = STAND_IN.format(
            python=sys.executable, words=words, start=start, read_at_start=read_at_start, followed=_FOLLOWED, path=path,
            torn_down=torn_down, made={arguments: str(folder) for arguments, folder in (made or {}).items()},
        )  # fmt: skip
        program.write_text(text)
        program.chmod(0o755)
    server = Popen([sys.executable, "-c", f"from tests import preloaded; preloaded.serve_at({path!r})"], cwd=ROOT)
    try:
        while not os.path.exists(path):
            time.sleep(0.005)
        yield
    finally:
        server.kill()
        server.wait()


def serve_at(path: str) -> None:
    """Fork for each that connects to ``path``, and tell it how its fork ended. Who is gone takes the fork along."""
    selector = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for waiting in (listener, woken):
        selector.register(waiting, selectors.EVENT_READ)
    connections: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection = listener.accept()[0]
                request = _receive(connection)
                if (pid := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for inherited in (selector, listener, woken, wake, connection, *connections.values()):
                        inherited.close()
                    _become(request)
                    _run_to_the_end(request)
                    sys.exit()
                for descriptor in request["streams"]:
                    os.close(descriptor)
                connection.sendall(pid.to_bytes(4, "big"))
                connections[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
            elif key.fileobj is woken:
                woken.recv(4096)
            elif key.data in connections:  # readable as it is closed: nothing more is sent
                selector.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
        _tell_ends(connections, selector)


def _tell_ends(connections: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while connections:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = connections.pop(pid)
        with contextlib.suppress(KeyError):
            selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(status.to_bytes(4, "big"))
        connection.close()


def main() -> None:
    """Load the packages, wait for requests, and go on as the program that was asked for."""
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            __import__(name)
    with contextlib.suppress(ImportError):
        from numba.core.registry import cpu_target

        cpu_target.target_context.refresh()  # what each first kernel would load
    sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[2]  # what one fork has compiled the next ones take
    gc.collect()
    gc.freeze()
    if request := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(request)
        _run_to_the_end(request)


if __name__ == "__main__":
    main()
