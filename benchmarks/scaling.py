"""What several processes gain, and what keeping their weights together costs.

    python -m benchmarks.scaling --json benchmarks/results/scaling_MACHINE.json

Rows, the same -b shared by more and more processes, each with its share of the cores (or a GPU of its own):
    step        a whole training step, one noise batch over and over: forward, loss, backward, averaging the gradients,
                the optimizer, and agreeing on whether to stop. speedup is against one process
    all_reduce  within that: averaging that many bytes and nothing else, in turn; agree_ms: the flags on the host
    estimate    on paper, for GPUs that are not here: see ``ring_seconds``. Marked ``estimate``; nothing was measured

Processes beyond the cores there are show what the exchange costs, not what it gains.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.queues import Queue

import torch
import torch.distributed as dist

from benchmarks.common import PRELOADED, Timing, parser, peak_mib, reset_peak, save, show, significant, summary
from benchmarks.optimizers import RATE, make_batch
from pipelines.run.plan import loss_collator
from pipelines.sampler import Sampler
from swapfast.batch import Batch, BatchMeta
from swapfast.config import ModelConfig, OptimizerConfig, TrainConfig
from swapfast.models import MODELS, build_model
from swapfast.optim.optimizer import Optimizer
from swapfast.processes import Processes, join_processes
from swapfast.system import available_cores
from swapfast.training.trainer import Trainer

LIMIT_S = 900  # for all processes of one row
GPUS = 8
FACES_PER_S = 25_000  # of one GPU alone, original at 64 px in bf16: what DESIGN asks of an H200, not what was measured
# Of NCCL's ring in one direction, GB/s, and what each of its steps adds: round figures of what people report, assumed.
LINKS = {"nvlink4": (300.0, 3e-6), "pcie5": (25.0, 6e-6)}


def ring_seconds(size: int, processes: int, gb_per_s: float, latency_s: float) -> float:
    """Return the seconds of a ring all-reduce: 2 (n - 1) steps, in each of which a process sends 1 / n of the bytes."""
    steps = 2 * (processes - 1)
    return steps / processes * size / (gb_per_s * 1e9) + steps * latency_s


def estimates(model: str = "original") -> list[dict]:
    """Return estimates for 8 GPUs from bytes and bandwidths, with and without overlap of exchange and backward."""
    built = build_model(ModelConfig(name=model), False, 1)
    size = sum(4 * p.numel() for p in built.parameters())
    rows = []
    for (link, (gb_per_s, latency)), batch in itertools.product(LINKS.items(), (64, 64 * GPUS)):
        compute = 2 * batch / GPUS / FACES_PER_S
        exchange = ring_seconds(size, GPUS, gb_per_s, latency)
        hidden = max(compute, exchange + compute / 3)  # forward is a third, and nothing can be sent before it ends
        one_gpu_s = 2 * batch / FACES_PER_S
        rows.append(
            {
                "name": "estimate",
                "estimate": True,
                "model": model,
                "size": built.output_sizes[-1],
                "batch": 2 * batch,
                "processes": GPUS,
                "link": link,
                "assumed_gb_per_s": gb_per_s,
                "assumed_faces_per_s_of_one": FACES_PER_S,
                "gradient_mib": round(size / 2**20, 1),
                "all_reduce_ms": significant(1000 * exchange),
                "compute_ms": significant(1000 * compute),
                "step_ms_one_after_another": significant(1000 * (compute + exchange)),
                "step_ms_overlapped": significant(1000 * hidden),
                "speedup_one_after_another": significant(one_gpu_s / (compute + exchange)),
                "speedup_overlapped": significant(one_gpu_s / hidden),
            }
        )
    return rows


def _share(batch: Batch, sampler: Sampler) -> Batch:
    mine = slice(sampler.first, sampler.stop)
    assert batch.meta.mask_face is not None
    masks = [mask[mine] for mask in batch.meta.mask_face]
    targets = [target[mine] for target in batch.targets]
    return Batch([images[mine] for images in batch.inputs], targets, BatchMeta(masks, masks, masks), 0)


def _median_ms(seconds: list[float]) -> float:
    return significant(1000 * statistics.median(seconds))


def measure(processes: Processes, device: str, model_name: str, per_side: int, repeats: int) -> dict:
    """Measure in one of the processes. Returns times, memory and sizes."""
    on = processes.device or torch.device(device)
    if on.type == "cpu":
        torch.set_num_threads(max(1, available_cores() // processes.world))
    model = build_model(ModelConfig(name=model_name), False, 1)
    model.to(on, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it
    sampler = Sampler(1, (per_side, per_side), per_side, processes.rank, processes.world)
    batch = _share(make_batch(model, per_side, on), sampler)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=RATE), processes=processes)
    loss = loss_collator(TrainConfig(), model).to(on)
    batches = itertools.repeat(batch)
    trainer = Trainer(model, loss, optimizer, batches, processes=processes, batch_size=per_side)
    flat = torch.zeros(sum(p.numel() for p in model.parameters()), device=on)

    def synced(call: Callable[[], object]) -> float:
        if on.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        if on.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def step() -> None:
        trainer.train_one_batch()
        processes.any_on_hosts(False, False, False)

    reset_peak()
    for _ in range(2):
        step()
    times: dict[str, list[float]] = {"step": [], "all_reduce": [], "agree": []}
    for _ in range(repeats):
        times["step"].append(synced(step))
        if processes.world > 1:
            times["all_reduce"].append(synced(lambda: dist.all_reduce(flat)))
            times["agree"].append(synced(lambda: processes.any_on_hosts(False)))
    return {
        "times": times,
        "peak_mib": peak_mib(),
        "bytes": 4 * flat.numel(),
        "size": model.output_sizes[-1],
        "threads": torch.get_num_threads(),
    }


def _one(
    rank: int, world: int, port: int, results: Queue, device: str, model_name: str, per_side: int, repeats: int
) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({key: str(value) for key, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with join_processes(device) as processes:
        result = measure(processes, device, model_name, per_side, repeats)
    if rank == 0:
        results.put(result)


def run_processes(world: int, device: str, model_name: str, per_side: int, repeats: int) -> dict:
    """Return what rank 0 of ``world`` processes measured."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "benchmarks.optimizers", "swapfast.training.trainer"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = context.Queue()
    workers = [
        context.Process(target=_one, args=(rank, world, port, results, device, model_name, per_side, repeats))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    try:
        return results.get(timeout=LIMIT_S)
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()


def rows_of(world: int, result: dict, alone_s: float, labels: dict, faces: int) -> list[dict]:
    """Return the rows measured with ``world`` processes. alone_s: seconds of a step of one process."""
    times, row_labels = result["times"], {**labels, "size": result["size"], "processes": world}
    median = statistics.median(times["step"])
    rows = [summary(Timing(times["step"], result["peak_mib"]), faces, name="step", **row_labels)]
    rows[0] |= {
        "steps_per_s": significant(1 / median),
        "speedup": significant(alone_s / median),
        "threads": result["threads"],
    }
    if world > 1:
        timing = Timing(times["all_reduce"], None)
        rows.append(summary(timing, faces, name="all_reduce", **row_labels))
        seconds = statistics.median(times["all_reduce"])
        rows[1] |= {
            "gradient_mib": round(result["bytes"] / 2**20, 2),
            "gb_per_s": significant(2 * (world - 1) / world * result["bytes"] / seconds / 1e9),
            "share_of_step": significant(seconds / median),
            "agree_ms": _median_ms(times["agree"]),
        }
    return rows


def main() -> None:
    """Run the benchmark."""
    flags = parser("Training steps by one and by several processes")
    flags.add_argument("--model", choices=sorted(MODELS), default="tiny", help="default tiny")
    flags.add_argument("--batch", type=int, default=32, help="faces per side of all processes together; default 32")
    flags.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    flags.add_argument("--repeats", type=int, default=40)
    options = flags.parse_args()
    repeats = 3 if options.quick else options.repeats
    labels = {
        "model": options.model,
        "device": options.device,
        "backend": "nccl" if options.device == "cuda" else "gloo",
    }
    results = {
        n: run_processes(n, options.device, options.model, options.batch, repeats)
        for n in sorted({1, *options.processes})
    }
    alone_s = statistics.median(results[1]["times"]["step"])
    rows = [row for n, result in results.items() for row in rows_of(n, result, alone_s, labels, 2 * options.batch)]
    rows += estimates()
    show(rows)
    save(rows, options.json)


if __name__ == "__main__":
    main()
