"""Several processes that train one model, as torchrun starts them.

Every process has its share of a step's faces (pipelines/sampler.py) and a copy of the model; gradients are averaged, so
all copies stay the same to the bit. The first process of all, rank 0, alone writes: checkpoints, logs, preview, lines.
Where there is only one process, everything here does nothing.

What travels, and how:
    gradients, flags a step depends on    on the device: NCCL between GPUs, gloo between CPUs
    stop, report and save                 on the host, through gloo, once a step: a GPU is not waited for
    texts, failures, who is ready, lives    through torch's key-value store, which torchrun keeps
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from swapfast.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, SwapfastError

TIMEOUT = datetime.timedelta(minutes=10)  # for a process to come to where the others wait: rank 0 may be saving
_POLL_S = 0.1
_JOIN_POLL_S = 0.02
_BEAT_S = 5.0  # a process shows that often that it lives
_GRACE_S = 1.0
_CLAIM_S = 3.0  # for a process that fails to say so before those it leaves alone do
_GO_ON = "the last checkpoint is whole, and the same command goes on from there"


class FailedElsewhere(SwapfastError):
    """Another process failed or left, and has said why: this one has nothing to add. The message is empty."""

    def __init__(self, code: int = EXIT_FAILED) -> None:
        super().__init__("", code)


@dataclass(frozen=True)
class Processes:
    """This process' place among those of a run, and what they say to each other. By default it is alone.

    rank, world: among all; local_rank, local_world: among those of this machine. device: what it trains on, or None:
    its own choice. Methods below *once a step* and *model and state* must be called by all, in the same order.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device | None = None
    store: dist.Store | None = None
    host: dist.ProcessGroup | None = None
    _spreads: list[int] = field(default_factory=lambda: [0], repr=False)  # how many there were

    @property
    def is_first(self) -> bool:
        """Whether it is this process that writes."""
        return self.rank == 0

    # --- who goes first ---------------------------------------------------------------------------------------

    def publish(self, key: str, value: object) -> None:
        """Leave something that JSON can hold for the others."""
        if self.store is not None:
            self.store.set(key, json.dumps(value))

    def wait_for(self, key: str, by: int = 0) -> object:
        """What rank ``by`` told under ``key``, waited for however long it takes: while it lives and none fails."""
        beat, heard = None, time.monotonic()
        while not self.store.check([key]):
            left = self.store.check([f"left {by}"])
            if self.store.check(["failure"]):
                raise FailedElsewhere(json.loads(self.store.get("failure"))["code"])
            if left and not self.store.check([key]):
                raise FailedElsewhere
            newest = self.store.check([f"alive {by}"]) and self.store.get(f"alive {by}")
            if newest != beat:
                beat, heard = newest, time.monotonic()
            elif time.monotonic() - heard > TIMEOUT.total_seconds():
                raise SwapfastError(f"rank {by} is gone: not a word in {TIMEOUT}; {_GO_ON}", EXIT_FAILED)
            time.sleep(_POLL_S)
        return json.loads(self.store.get(key))

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Let the others know that this process lives, whatever else it does within: reading faces may take hours."""
        end = threading.Event()
        thread = threading.Thread(target=self._beat, args=(end,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(_GRACE_S)

    def _beat(self, end: threading.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, which the main thread notices
            for beat in itertools.count():
                self.publish(f"alive {self.rank}", beat)
                if end.wait(_BEAT_S):
                    return

    @property
    def _machine(self) -> int:
        """The name of this machine: the rank of its first process, as ranks are counted machine by machine."""
        return self.rank - self.local_rank

    def _files(self) -> str:
        return f"files ready on {self._machine}"

    def wait_for_files(self) -> None:
        """Let the machine's first process read folders and fill the cache alone; the others find what it kept."""
        if self.local_rank:
            self.wait_for(self._files(), by=self._machine)

    def publish_files_ready(self) -> None:
        """Let the machine's other processes go on; to be called too where a run ends before it begins."""
        if not self.local_rank:
            self.publish(self._files(), True)

    def check_same(self, what: str, mine: str) -> None:
        """SwapfastError where ``mine`` is not what rank 0 has; what: in the message, such as 'the faces'.

        All leave together, however long one takes to come: a machine may decode for longer than the limit of what
        processes exchange, and so nobody may be there before.
        """
        if self.world == 1:
            return
        if self.is_first:
            self.publish(what, mine)
            for other in range(1, self.world):
                self.wait_for(f"{what} of {other}", by=other)
            self.publish(f"{what} of all", True)
            return
        if self.wait_for(what) != mine:
            raise SwapfastError(
                f"{what} of rank {self.rank} differ from those of rank 0: give every machine the same folders and files"
            )
        self.publish(f"{what} of {self.rank}", True)
        self.wait_for(f"{what} of all")

    # --- once a step ------------------------------------------------------------------------------------------

    def any_on_hosts(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether any process has it set. Only hosts wait for each other."""
        if self.world == 1:
            return flags
        together = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(together, dist.ReduceOp.MAX, self.host)
        return tuple(bool(flag) for flag in together.tolist())

    def any_on_devices(self, flag: Tensor) -> Tensor:
        """Whether it is set anywhere, a bool on the device, without waiting for it."""
        if self.world == 1:
            return flag
        together = flag.to(torch.uint8)  # a copy: bool and uint8 differ
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return together.bool()

    def mean_over_faces(self, values: Tensor, share: float) -> Tensor:
        """The mean over all faces of a batch, of which this process saw ``share``, 0..1: float32 on the device."""
        if self.world == 1:
            return values
        together = values.double() * share  # so that what is the same everywhere comes out as it went in
        dist.all_reduce(together)
        return together.float()

    # --- model and state --------------------------------------------------------------------------------------

    def wrap(self, model: nn.Module) -> nn.Module:
        """A module to call in the place of ``model`` whose gradients are means over all processes.

        Weights and buffers become rank 0's.
        """
        if self.world == 1:
            return model
        # Views: gradients lie in the buffers that are sent, so that they exist once. Weights do not move in memory.
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def gradient_sync(self, wrapped: nn.Module, now: bool) -> Iterator[None]:
        """Forward and backward within: gradients are averaged ``now``, or later with those of further batches."""
        later = self.world > 1 and not now and isinstance(wrapped, nn.parallel.DistributedDataParallel)
        with wrapped.no_sync() if later else contextlib.nullcontext():
            yield

    def mean_over_processes(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the processes of every tensor; new ones."""
        if self.world == 1:
            return dict(tensors)
        means = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name in sorted(means):
            dist.all_reduce(means[name])
            means[name] /= self.world
        return means

    def broadcast_tensors(self, parts: dict[str, dict[str, Tensor]] | None) -> dict[str, dict[str, Tensor]] | None:
        """Rank 0's named tensors, on the host, for all; None where it has none. The others' are not looked at."""
        if self.world == 1:
            return parts
        self._spreads[0] += 1
        key = f"tensors {self._spreads[0]}"
        if self.is_first:
            described = parts and {
                part: {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
                for part, tensors in parts.items()
            }
            self.publish(key, described)
        else:
            described = self.wait_for(key)
        if described is None:
            return None
        result: dict[str, dict[str, Tensor]] = {}
        for part, tensors in described.items():
            result[part] = {}
            for name, (dtype, shape) in tensors.items():
                if self.is_first:
                    tensor = parts[part][name].detach().cpu().contiguous()
                else:
                    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                # As bytes: gloo does not know every type.
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0, self.host)
                result[part][name] = tensor
        return result

    # --- the end ----------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Stay until rank 0 has left, which may be saving: torchrun ends all as soon as one leaves with a code but 0.

        Where rank 0 keeps the store itself it stays until the others know.
        """
        with contextlib.suppress(RuntimeError):  # the store went with the process that kept it
            if not self.is_first:
                self.wait_for("left 0")
            self.publish(f"left {self.rank}", True)
            if self.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                others = [f"left {other}" for other in range(1, self.world)]
                _poll(lambda: self.store.check(others), "not all have left")

    def claim_failure(self, code: int) -> bool:
        """Whether this process is the first to fail, and so the one to say why."""
        if self.store.add("failures", 1) != 1:
            return False
        self.publish("failure", {"code": code, "rank": self.rank})
        return True

    def _failed_elsewhere(self, patience_s: float) -> int | None:
        """The code with which another process failed, or None if none has said so within that time."""
        end = time.monotonic() + patience_s
        while not self.store.check(["failure"]):
            if time.monotonic() > end:
                return None
            time.sleep(_POLL_S)
        return json.loads(self.store.get("failure"))["code"]


SINGLE_PROCESS = Processes()


def _is_lost(error: BaseException) -> bool:
    """Whether an error means that another process cannot be reached. gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def is_distributed() -> bool:
    """Whether torchrun, or something that sets the same variables, started several processes."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in names) and int(os.environ["WORLD_SIZE"]) > 1


def exit_code_when_stopped() -> int:
    """The code to leave with when stopped and saved. torchrun would take another than 0 for a failure, and restart."""
    return EXIT_DONE if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 else EXIT_STOPPED


def device_of_rank(local_rank: int, local_world: int, name: str) -> torch.device:
    """The device of a machine's ``local_rank``th process; SwapfastError where there are fewer GPUs than processes.

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
    """This process among those torchrun started, or ``SINGLE_PROCESS``.

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


def _join(device: str) -> Processes:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on = device_of_rank(local_rank, local_world, device)
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(_attempt(store, rank, world), store)
        more = {"device_id": on} if on.type == "cuda" else {}
        dist.init_process_group(
            "nccl" if on.type == "cuda" else "gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT, **more
        )
        host = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise SwapfastError(
            f"rank {os.environ['RANK']} cannot reach the others at {os.environ['MASTER_ADDR']}: {error}", EXIT_FAILED
        ) from error
    return Processes(rank, world, local_rank, local_world, on, store, host)


def _poll(done: Callable[[], bool], missing: str) -> None:
    """Wait until ``done()``; RuntimeError after the limit. Signals get through, unlike while a store waits."""
    end = time.monotonic() + TIMEOUT.total_seconds()
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(missing)
        time.sleep(_JOIN_POLL_S)


def _attempt(store: dist.Store, rank: int, world: int) -> str:
    """A prefix for keys that all processes of this start have, and no other start: torchrun's store outlives a restart.

    Rank 0 chooses it. What another start left is answered too, and nobody listens. TORCHELASTIC_RESTART_COUNT will not
    do: a machine that restarts because another one did does not count it.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"swapfast came {rank}", mine)
        answer = f"swapfast answer {mine}"
        _poll(lambda: store.check([answer]), "no answer from rank 0")
        chosen = store.get(answer).decode()
        store.set(f"{chosen} known to {rank}", "1")
        return chosen

    def known_to_all() -> bool:
        for came in (f"swapfast came {other}" for other in range(1, world)):
            if store.check([came]):
                store.set(f"swapfast answer {store.get(came).decode()}", mine)
        return store.check([f"{mine} known to {other}" for other in range(1, world)])

    _poll(known_to_all, "not all have come")
    return mine


def error_to_raise(processes: Processes, error: BaseException) -> BaseException:
    """The error to leave with: ``error``, unless another process failed before or is the reason."""
    told = FailedElsewhere()
    with contextlib.suppress(KeyboardInterrupt):  # of torchrun, as it saw another one leave: that has said why
        told = root_cause(processes, error)
        if isinstance(told, FailedElsewhere):
            # torchrun ends all others as soon as it sees one leave: first the one that has something to say.
            time.sleep(_GRACE_S)
        with contextlib.suppress(RuntimeError):
            processes.publish(f"left {processes.rank}", True)
    return told


def root_cause(processes: Processes, error: BaseException) -> BaseException:
    if isinstance(error, FailedElsewhere):
        return error
    lost = _is_lost(error)
    try:
        code = processes._failed_elsewhere(_CLAIM_S if lost else 0.0)
        if code is not None:
            return FailedElsewhere(code)
        mine = EXIT_STOPPED if isinstance(error, KeyboardInterrupt) else getattr(error, "code", EXIT_FAILED)
        if not processes.claim_failure(mine if isinstance(mine, int) else EXIT_FAILED):
            return FailedElsewhere(EXIT_FAILED)
    except RuntimeError:  # the store went with the process that kept it
        if lost and not processes.is_first:
            return FailedElsewhere(EXIT_FAILED)
    if lost:
        return SwapfastError(
            "another process of this run is gone (killed, out of memory, or its machine or network lost; torchrun "
            f"says which); {_GO_ON}",
            EXIT_FAILED,
        )
    return error
