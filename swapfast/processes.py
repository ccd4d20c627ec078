"""Several processes that train one model, as torchrun starts them.

Each process has its share of a step's faces (pipelines/sampler.py) and a copy of the model; gradients are averaged, so
that all copies stay equal to the bit. Rank 0 alone writes: checkpoints, logs, preview, lines. With a single process
everything here does nothing.

What travels, and how:
    gradients, flags a step depends on    on the device: NCCL between GPUs, gloo between CPUs
    stop, report and save                 on the host, through gloo, once a step: no GPU is waited for
    texts, failures, readiness, life      through torch's key-value store, which torchrun keeps

Why failures and waits do not use torchelastic's own: its ``@record`` makes torchrun print a traceback of every process
where a user gets one line of the process that failed first, and its store barrier returns after its timeout at the
earliest, whether a signal arrives, another process fails, or a machine decodes faces for hours and lives.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import inspect
import itertools
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, no_type_check

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from swapfast.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, SwapfastError
from swapfast.printing import complain
from swapfast.threads import ThreadPool, wait_in_thread

TIMEOUT = datetime.timedelta(minutes=10)  # of a collective operation: rank 0 may be saving
_POLL_S = 0.1
_JOIN_POLL_S = 0.02
_HEARTBEAT_S = 5.0
_GRACE_S = 1.0
_QUIET_S = 5.0  # of waiting for the others, without a word
_LOOKUP_S = 3.0
_CLAIM_S = 3.0  # for a process that fails to say so before those that lose it do
_WAY_OUT = "the last checkpoint is whole, and the same command goes on from there"


class FailedElsewhere(SwapfastError):
    """Raised where another process failed or left, and has said why. The message is empty."""

    def __init__(self, code: int = EXIT_FAILED) -> None:
        super().__init__("", code)


@dataclass(frozen=True)
class Processes:
    """This process' place among those of a run, and how they exchange values. By default it is the only one.

    rank, world: among all. local_rank, local_world: among those of this machine. device: what it trains on; None: its
    own choice. All processes must call the methods below *once a step* and *model and state*, in the same order.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device | None = None
    store: dist.Store | None = None
    host: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def _shared_store(self) -> dist.Store:
        """The store of several processes; one alone has none."""
        assert self.store is not None, "a process alone waits for no other"
        return self.store

    # --- before the first step ---------------------------------------------------------------------------------------

    def publish(self, key: str, value: object) -> None:
        """Give the others a value that JSON can hold."""
        if self.store is not None:
            self.store.set(key, json.dumps(value))

    def wait_for(self, key: str, by: int = 0) -> object:
        """Return what rank ``by`` published under ``key``, however long that takes while it lives and none fails.

        Raises FailedElsewhere where a process fails or ``by`` leaves, SwapfastError where ``by`` has no heartbeat.
        """
        store, last_beat, beat_time = self._shared_store, None, time.monotonic()
        while not store.check([key]):
            has_left = store.check([f"left {by}"])
            if store.check(["failure"]):
                raise FailedElsewhere(json.loads(store.get("failure"))["code"])
            if has_left and not store.check([key]):
                raise FailedElsewhere
            beat = store.check([f"alive {by}"]) and store.get(f"alive {by}")
            if beat != last_beat:
                last_beat, beat_time = beat, time.monotonic()
            elif time.monotonic() - beat_time > TIMEOUT.total_seconds():
                raise SwapfastError(f"rank {by} is gone: not a word in {TIMEOUT}; {_WAY_OUT}", EXIT_FAILED)
            time.sleep(_POLL_S)
        return json.loads(store.get(key))

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Show the others that this process lives while the block runs: reading faces may take hours."""
        end = threading.Event()
        thread = threading.Thread(target=self._beat, args=(end,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise SwapfastError(
                f"rank {self.rank}: the system grants no thread (ulimit -u, docker --pids-limit)", EXIT_FAILED
            ) from error
        try:
            yield
        finally:
            end.set()
            thread.join(_GRACE_S)

    def _beat(self, end: threading.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, which the main thread notices
            for beat in itertools.count():
                self.publish(f"alive {self.rank}", beat)
                if end.wait(_HEARTBEAT_S):
                    return

    @property
    def _machine(self) -> int:
        """The rank of this machine's first process: ranks are counted machine by machine."""
        return self.rank - self.local_rank

    def _files(self) -> str:
        return f"files ready on {self._machine}"

    def wait_for_files(self) -> None:
        """Wait until the machine's first process has read the folders and filled the cache, for all others to find."""
        if self.local_rank:
            self.wait_for(self._files(), by=self._machine)

    def publish_files_ready(self) -> None:
        """Let the machine's other processes go on. Call it too where a run ends before its first step."""
        if not self.local_rank:
            self.publish(self._files(), True)

    def check_same(self, name: str, value: str) -> None:
        """Raise SwapfastError where ``value`` is not rank 0's. name: in the message, such as 'the faces'.

        All return together, however late one comes: a machine may decode for longer than TIMEOUT, and so no process
        may enter a collective operation before.
        """
        if self.world == 1:
            return
        if self.is_first:
            self.publish(name, value)
            for rank in range(1, self.world):
                self.wait_for(f"{name} of {rank}", by=rank)
            self.publish(f"{name} of all", True)
            return
        if self.wait_for(name) != value:
            raise SwapfastError(
                f"{name} of rank {self.rank} differ from those of rank 0: give every machine the same folders and files"
            )
        self.publish(f"{name} of {self.rank}", True)
        self.wait_for(f"{name} of all")

    # --- once a step ------------------------------------------------------------------------------------------

    def any_on_hosts(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any process has it set. Only hosts wait for each other."""
        if self.world == 1:
            return flags
        combined = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(combined, dist.ReduceOp.MAX, self.host)
        return tuple(bool(flag) for flag in combined.tolist())

    def any_on_devices(self, flag: Tensor) -> Tensor:
        """Return whether any process has the flag set: a bool on the device, which the host does not wait for."""
        if self.world == 1:
            return flag
        combined = flag.to(torch.uint8)  # a copy: bool and uint8 differ
        dist.all_reduce(combined, dist.ReduceOp.MAX)
        return combined.bool()

    def mean_over_faces(self, values: Tensor, share: float) -> Tensor:
        """Return means over all faces of a batch, float32 on the device.

        values: this process' means. share: of the batch that this process saw, 0..1.
        """
        if self.world == 1:
            return values
        weighted = values.double() * share  # so that equal values come out as they went in
        dist.all_reduce(weighted)
        return weighted.float()

    # --- model and state --------------------------------------------------------------------------------------

    def wrap(self, model: nn.Module, exchange: str = "fp32") -> nn.Module:
        """Return a module to call in place of ``model``, whose gradients are means over all processes.

        The weights and buffers of ``model`` become those of rank 0. exchange: what gradients are sent in, 'fp32', or
        'bf16' for half the bytes.
        """
        if self.world == 1:
            return model
        # Views: gradients lie in the buffers that are sent, so that they exist once. Weights do not move in memory.
        parallel = nn.parallel.DistributedDataParallel
        # The model's buffers come to the same on all processes by themselves; torch 2.13 has another word for that.
        words = inspect.signature(parallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in words else "broadcast_buffers"
        settings: dict[str, Any] = {"gradient_as_bucket_view": True, buffers: False}
        wrapped = parallel(model, **settings)
        if exchange == "bf16":
            wrapped.register_comm_hook(None, _send_bf16)
        return wrapped

    @contextlib.contextmanager
    def gradient_sync(self, wrapped: nn.Module, is_last_batch: bool) -> Iterator[None]:
        """Average the gradients of the block's backward pass if ``is_last_batch`` of a step, else add them up."""
        defers = not is_last_batch and isinstance(wrapped, nn.parallel.DistributedDataParallel)
        with cast(nn.parallel.DistributedDataParallel, wrapped).no_sync() if defers else contextlib.nullcontext():
            yield

    def mean_over_processes(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return new tensors: the mean of each over all processes."""
        if self.world == 1:
            return dict(tensors)
        means = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name in sorted(means):
            dist.all_reduce(means[name])
            means[name] /= self.world
        return means

    def broadcast_tensors(self, parts: dict[str, dict[str, Tensor]] | None) -> dict[str, dict[str, Tensor]] | None:
        """Return rank 0's tensors on the host of every process, or None where rank 0 has None.

        parts: part -> name -> tensor; looked at on rank 0 only.
        """
        if self.world == 1:
            return parts
        layout = None
        if self.is_first and parts is not None:
            layout = {
                part: {name: (t.dtype, t.shape) for name, t in tensors.items()} for part, tensors in parts.items()
            }
        received = [layout]
        dist.broadcast_object_list(received, 0, self.host)
        if received[0] is None:
            return None
        result: dict[str, dict[str, Tensor]] = {}
        for part, tensors in received[0].items():
            result[part] = {}
            for name, (dtype, shape) in tensors.items():
                if self.is_first and parts is not None:
                    tensor = parts[part][name].detach().cpu().contiguous()
                else:
                    tensor = torch.empty(shape, dtype=dtype)
                # As bytes: gloo does not know every type.
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0, self.host)
                result[part][name] = tensor
        return result

    # --- the end ----------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Wait until rank 0 leaves: it may be saving, and torchrun ends all once a process leaves with a code but 0.

        Where rank 0 keeps the store itself, it waits until the others have left.
        """
        with contextlib.suppress(RuntimeError):  # the store went with the process that kept it
            if not self.is_first:
                self.wait_for("left 0")
            self.publish(f"left {self.rank}", True)
            if self.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                keys = [f"left {rank}" for rank in range(1, self.world)]
                _poll(lambda: self._shared_store.check(keys), "not all have left")

    def claim_failure(self, code: int) -> bool:
        """Return whether this process is the first to fail, and so the one to say why."""
        if self._shared_store.add("failures", 1) != 1:
            return False
        self.publish("failure", {"code": code, "rank": self.rank})
        return True

    def _failed_elsewhere(self, patience_s: float) -> int | None:
        """Return the code with which another process failed, or None if none has said so within that time."""
        store, end = self._shared_store, time.monotonic() + patience_s
        while not store.check(["failure"]):
            if time.monotonic() > end:
                return None
            time.sleep(_POLL_S)
        return json.loads(store.get("failure"))["code"]


@no_type_check  # torch compares annotations with its types, and ours are texts
def _send_bf16(group, bucket):
    """Send gradients in bfloat16. torch takes its own hook by that name with NCCL only; gloo can do it as well."""
    return bf16_compress_hook(group, bucket)


SINGLE_PROCESS = Processes()


def _is_lost(error: BaseException) -> bool:
    """Return whether an error means that another process cannot be reached. gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@dataclass(frozen=True)
class Place:
    """What torchrun's variables say of this process: its rank among all and on its machine, and where rank 0 is."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = ""
    port: int = 0


def place_of(variables: Mapping[str, str]) -> Place:
    """Return this process' place, as torchrun or a script of the user's tells it by ``variables``.

    Raises SwapfastError where they cannot be: waiting for the other processes would be in vain.
    """
    world = _number(variables, "WORLD_SIZE", 1, 1)
    if world == 1 and not variables.get("RANK"):
        return Place()
    rank = _number(variables, "RANK", None, 0, world - 1, f"WORLD_SIZE is {world}")
    if world == 1:
        return Place()
    local_world = _number(variables, "LOCAL_WORLD_SIZE", 1, 1, world, f"WORLD_SIZE is {world}")
    # Without LOCAL_WORLD_SIZE nobody says how many processes this machine has.
    last = local_world - 1 if variables.get("LOCAL_WORLD_SIZE") else rank
    local_rank = _number(variables, "LOCAL_RANK", 0, 0, min(last, rank), f"RANK is {rank} of {local_world} here")
    address = variables.get("MASTER_ADDR", "").strip()
    if not address:
        raise SwapfastError(f"MASTER_ADDR: is not set though WORLD_SIZE is {world}; {_START_BY}")
    return Place(rank, world, local_rank, local_world, address, _number(variables, "MASTER_PORT", None, 1, 65535))


_START_BY = "start by torchrun, which sets them all: torchrun --nproc-per-node N -m swapfast train ..."


def _number(
    variables: Mapping[str, str], name: str, default: int | None, low: int, high: int | None = None, reason: str = ""
) -> int:
    text = variables.get(name, "").strip()
    if not text and default is not None:
        return default
    bounds = f"{low} to {high}" if high is not None else f"{low} or more"
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        stated = repr(text) if text else "is not set"
        raise SwapfastError(f"{name}: {stated}{'' if text else ','} but a number from {bounds} is needed; {_START_BY}")
    if int(text) < low or (high is not None and int(text) > high):
        raise SwapfastError(
            f"{name}: {text}, but it must be {bounds}{f', since {reason}' if reason else ''}; {_START_BY}"
        )
    return int(text)


def several_tasks(variables: Mapping[str, str]) -> str:
    """Return what to say where a job started several tasks without telling them of each other; else nothing."""
    for launcher, name in (("srun", "SLURM_NTASKS"), ("mpirun", "OMPI_COMM_WORLD_SIZE"), ("mpirun", "PMI_SIZE")):
        count = variables.get(name, "").strip()
        if re.fullmatch("[0-9]{1,9}", count) and int(count) > 1:
            return (
                f". This job has {count} tasks ({name}): {launcher} starts as many runs of their own. For one model "
                "let it start one torchrun a machine: torchrun --nproc-per-node N -m swapfast train ..."
            )
    return ""


def is_distributed() -> bool:
    """Return whether torchrun, or something that sets the same variables, started several processes.

    Raises SwapfastError where the variables contradict each other.
    """
    return place_of(os.environ).world > 1


def exit_code_when_stopped() -> int:
    """Return the code to leave with when stopped and saved: torchrun restarts after any code but 0."""
    return EXIT_DONE if _number(os.environ, "TORCHELASTIC_MAX_RESTARTS", 0, 0) > 0 else EXIT_STOPPED


def device_of_rank(local_rank: int, local_world: int, name: str) -> torch.device:
    """Return the device of a machine's process. Raises SwapfastError where there are fewer GPUs than processes.

    name: 'auto', 'cpu' or 'cuda', as in --device.
    """
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_world > torch.cuda.device_count():
        raise SwapfastError(
            f"{local_world} processes on this machine and {torch.cuda.device_count()} GPUs: start one process for each "
            "GPU (--nproc-per-node), or use --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def join_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started and yield this one's place, or ``SINGLE_PROCESS``.

    The process that fails first raises its own error, and the others raise ``FailedElsewhere``. Where a process is gone
    without a word (killed, a machine lost), one of those that miss it says so.
    """
    if not is_distributed():
        yield SINGLE_PROCESS
        return
    processes = _join(device)
    try:
        with processes.heartbeat():
            yield processes
            processes.leave()
    except BaseException as error:
        raise error_to_raise(processes, error) from error
    dist.destroy_process_group()


def _join(device_name: str) -> Processes:
    place = place_of(os.environ)
    device = device_of_rank(place.local_rank, place.local_world, device_name)
    _check_address(place)
    # All of this waits within C code, where no signal is heard.
    pool = ThreadPool(1, "join")
    joined = pool.submit(_meet, place, device)
    try:
        try:
            return joined.result(_QUIET_S)
        except concurrent.futures.TimeoutError:
            complain(f"rank {place.rank} waits for the others ({place.world} in all, at {place.address}:{place.port})")
        return joined.result()
    finally:
        pool.shutdown(patience_s=0.0)


def _check_address(place: Place) -> None:
    """Raise SwapfastError where nobody knows the address of rank 0."""

    def look_up() -> None:
        end = time.monotonic() + _LOOKUP_S  # a name may appear only once its machine is up
        while True:
            try:
                socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM)
                return
            except (OSError, UnicodeError) as error:
                if time.monotonic() > end:
                    raise SwapfastError(
                        f"MASTER_ADDR: {place.address!r} is not known ({error}); {_START_BY}"
                    ) from error
            time.sleep(_POLL_S)

    wait_in_thread(look_up, "address")


def _meet(place: Place, device: torch.device) -> Processes:
    """Join the process group; returns when all have come."""
    local_rank, local_world = place.local_rank, place.local_world
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own
        store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(_attempt(store, rank, world), store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        device_id = device if device.type == "cuda" else None
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT, device_id=device_id)
        host = dist.new_group(backend="gloo", timeout=TIMEOUT)
        _wait_for_all(store, rank, world)
    except (RuntimeError, ValueError) as error:
        raise SwapfastError(
            f"rank {os.environ['RANK']} cannot reach the others at {os.environ['MASTER_ADDR']}: {error}", EXIT_FAILED
        ) from error
    return Processes(rank, world, local_rank, local_world, device, store, host)


def _wait_for_all(store: dist.Store, rank: int, world: int) -> None:
    """Return once all are connected with all, so that one that fails at once cannot keep the others from connecting.

    Rank 0, which keeps the store, goes on as the last: the others ask it until they know.
    """
    store.set(f"connected {rank}", "1")
    _poll(lambda: store.check([f"connected {other}" for other in range(world)]), "not all are connected")
    store.set(f"knows {rank}", "1")
    if rank == 0:
        _poll(lambda: store.check([f"knows {other}" for other in range(world)]), "not all are connected")


def _poll(is_done: Callable[[], bool], message: str) -> None:
    """Wait until ``is_done()``; raise RuntimeError after TIMEOUT. Signals are handled, unlike within a store's wait."""
    end = time.monotonic() + TIMEOUT.total_seconds()
    while not is_done():
        if time.monotonic() > end:
            raise RuntimeError(message)
        time.sleep(_JOIN_POLL_S)


def _attempt(store: dist.Store, rank: int, world: int) -> str:
    """Return a prefix of keys that all processes of this start share, and no other start does.

    torchrun's store outlives a restart. Rank 0 chooses the prefix; it also answers requests that an earlier start left,
    which nobody reads. TORCHELASTIC_RESTART_COUNT is no such prefix: a machine that restarts because another one did
    does not count it.
    """
    token = uuid.uuid4().hex
    if rank:
        store.set(f"swapfast came {rank}", token)
        answer = f"swapfast answer {token}"
        _poll(lambda: store.check([answer]), "no answer from rank 0")
        answer_text = store.get(answer).decode()
        store.set(f"{answer_text} known to {rank}", "1")
        return answer_text

    def known_to_all() -> bool:
        for request in (f"swapfast came {rank}" for rank in range(1, world)):
            if store.check([request]):
                store.set(f"swapfast answer {store.get(request).decode()}", token)
        return store.check([f"{token} known to {rank}" for rank in range(1, world)])

    _poll(known_to_all, "not all have come")
    return token


def error_to_raise(processes: Processes, error: BaseException) -> BaseException:
    """Return ``error``, or FailedElsewhere where another process failed before or is the reason."""
    cause: BaseException = FailedElsewhere()
    with contextlib.suppress(KeyboardInterrupt):  # from torchrun, once it has seen another process leave
        cause = root_cause(processes, error)
        if isinstance(cause, FailedElsewhere):
            # torchrun ends all others once it sees one leave: the one that has something to say must be first.
            time.sleep(_GRACE_S)
        with contextlib.suppress(RuntimeError):
            processes.publish(f"left {processes.rank}", True)
    return cause


def root_cause(processes: Processes, error: BaseException) -> BaseException:
    """Claim the failure for this process and return its error; FailedElsewhere where another process has claimed it."""
    if isinstance(error, FailedElsewhere):
        return error
    is_lost = _is_lost(error)
    try:
        code = processes._failed_elsewhere(_CLAIM_S if is_lost else 0.0)
        if code is not None:
            return FailedElsewhere(code)
        code = EXIT_STOPPED if isinstance(error, KeyboardInterrupt) else getattr(error, "code", EXIT_FAILED)
        if not processes.claim_failure(code if isinstance(code, int) else EXIT_FAILED):
            return FailedElsewhere(EXIT_FAILED)
    except RuntimeError:  # the store went with the process that kept it
        if is_lost and not processes.is_first:
            return FailedElsewhere(EXIT_FAILED)
    if is_lost:
        return SwapfastError(
            "another process of this run is gone (killed, out of memory, or its machine or network lost; torchrun "
            f"says which); {_WAY_OUT}",
            EXIT_FAILED,
        )
    return error
