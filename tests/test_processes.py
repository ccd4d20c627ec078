"""Several processes train one model: as one would, to the rounding; they stop together and fail in bounded time."""

from __future__ import annotations

import datetime
import io
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy

import cli
from pipelines.sampler import Sampler
from swapfast import processes as distributed
from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.config import OptimizerConfig
from swapfast.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, SwapfastError
from swapfast.losses import LossCollator
from swapfast.models.autoencoder import LANDMARKS
from swapfast.optim.lr_finder import LearningRateFinder
from swapfast.optim.optimizer import Optimizer
from swapfast.processes import (
    SINGLE_PROCESS,
    FailedElsewhere,
    Place,
    Processes,
    join_processes,
    place_of,
    several_tasks,
)
from swapfast.training.averages import WeightAverages
from swapfast.training.code_statistics import CodeStatistics, OwnColorFaces, SampleFaces
from swapfast.training.plateau import PlateauWatch
from swapfast.training.progress import ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests import preloaded
from tests.crash_harness import FORKED
from tests.toy import SIZE, toy

ROOT = Path(__file__).resolve().parents[1]
FACES = 5  # a side: three processes of four have one, the last has two
LIMIT_S = 60  # for anything here; the machine may be busy
# Adam divides each gradient by its own size: with a small epsilon those that are nothing but rounding move weights too,
# and sums over faces round differently when they are taken in parts. Beside 1 no gradient here is large, so that steps
# are in proportion to them.
LEARNING_RATE = 1e-2
EPSILON = 0
# How far apart the weights of two runs may be, as a share of the way they went: six steps part most runs by 1e-6 to
# 2e-5 and the worst of five seeds and seven scenarios by 1.5e-4; half precision by 2.8e-3. Five times that. Of the
# program and its own model 40 steps part them by 2.1e-4 in the worst of three seeds. Faces that count by the half
# instead of by their share part them by 6e-3 to 2e-2.
TOLERANCE, BFLOAT16_TOLERANCE = 7e-4, 2e-2
MANY_STEPS_TOLERANCE = 2e-3
GLOO = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


def _batches(rank, world, start=0, poison=()):
    """Batch n is a function of n, of which each process takes its share; a NaN in the last face of some."""
    step = start
    sampler = Sampler(1, (9, 9), FACES, rank, world, start_ordinal=3)  # as after a run at another batch size
    while True:
        generator = torch.Generator().manual_seed(step)
        faces = torch.rand(2, FACES, 3, 1, 1, generator=generator) * torch.linspace(0, 1, SIZE)
        faces = faces.expand(2, FACES, 3, SIZE, SIZE).clone()
        if step in poison:
            faces[1, -1, 0, 0, 0] = float("nan")
        mine = slice(sampler.first, sampler.stop)
        faces, masks = faces[:, mine], torch.ones(FACES, 2, 1, SIZE, SIZE)[mine]
        landmarks = [side[:, :, 0, -1].mean(1, keepdim=True).expand(-1, LANDMARKS) for side in faces]
        batch = Batch(list(faces), [faces.transpose(0, 1)], BatchMeta([masks]), step, landmarks)
        batch.covariates = [4 * side[:, :, 0, -1] - 2 for side in faces]  # a face's brightness in each colour
        batch.ordinals = sampler.ordinals(step)
        yield batch
        step += 1


class Shares:
    """``_batches`` of which any can be made again."""

    def __init__(self, rank, world, start, poison):
        self.rank, self.world, self.start, self.poison = rank, world, start, poison

    def __iter__(self):
        return self.from_step(self.start)

    def from_step(self, step):
        return _batches(self.rank, self.world, step, self.poison)


def _trainer(processes, folder, iterations, poison=(), precision="fp32", seed=5, stop_at=None, **given):
    """A trainer that goes on from what rank 0 finds in its folder. The others' folders are empty."""
    run, exchange = {"nan": given.pop("nan", "stop")}, given.pop("exchange", "fp32")
    model = toy().with_code(given.pop("code", "plain")).initialise(seed).to(memory_format=torch.channels_last)
    means = torch.tensor([[0.5, -0.2, 0.0], [-0.5, 0.2, 0.0]])
    model.compare_poses(means, torch.diag(torch.tensor([0.5, 0.0, 0.3])) * torch.tensor([1.0, -1.0])[:, None, None])
    weight = given.pop("landmark_weight", 0.0)
    if weight:
        model.with_landmark_reader()
    start = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
    config = OptimizerConfig(learning_rate=LEARNING_RATE, epsilon_exponent=EPSILON, **given)
    optimizer = Optimizer(model, config, precision == "fp16", processes=processes)
    averages = WeightAverages(model, config.half_lives, config.gradient_accumulation) if processes.is_first else None
    checkpoints = CheckpointFolder(folder / f"model{processes.rank}")
    found = checkpoints.load()
    tensors = processes.broadcast_tensors(found and found[0].tensors)
    step = found[0].step if found else 0
    if tensors is not None:
        step = int(tensors["at"]["step"])
        model.load_state_dict(tensors["model"])
        optimizer.load_state_dict(tensors["optimizer"])
        if averages is not None:
            averages.load_state_dict(tensors["ema"])
    optimizer.plan_end(iterations - step)
    kept = {"at": {"step": torch.tensor(iterations)}}
    lines = io.StringIO()
    run = Run(checkpoints, iterations, 1000, tensors=kept, progress=ProgressLine(lines), **run)
    run.saved_step = step if tensors else None
    loss = LossCollator(["ssim", "mse"], [1.0, 1.0], "bgr", True, 1, 1, SIZE, landmark_weight=weight)
    batches = Shares(processes.rank, processes.world, step, poison)
    if stop_at is not None:
        batches = _stopping(batches, run.stop, stop_at)
    statistics = _statistics(model, averages) if processes.is_first else None
    trainer = Trainer(
        model,
        loss,
        optimizer,
        batches,
        run,
        step,
        precision,
        processes,
        FACES,
        None,
        exchange,
        averages,
        None,
        statistics,
    )
    trainer.lines, trainer.start = lines, start
    return trainer


def _statistics(model, averages):
    """What measures the codes of some faces by the model and its averages, of which rank 0 alone has any."""
    levels = torch.rand(2, 6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7)).mul(255).byte().numpy()
    poses = np.random.default_rng(8).normal(size=(2, 6, 3)).astype(np.float32)
    faces = [SampleFaces(*of_side) for of_side in zip(levels, poses, strict=True)]
    own = [OwnColorFaces(of_side.images, np.ones(6), np.zeros(3), of_side.images // 2) for of_side in faces]
    return CodeStatistics([model, *map(averages.averaged_model, averages.half_lives)], faces, own)


def _stopping(batches, stop, at):
    for batch in batches:
        if batch.step == at:
            stop.request("a test")
        yield batch


def _shown(trainer):
    """The losses of the lines a person sees."""
    return [float(n) for n in re.findall(r"Loss [AB]: ([\d.]+)", trainer.lines.getvalue())]


def _result(trainer):
    weights = {name: weight.numpy() for name, weight in trainer.model.state_dict().items()}
    if not trainer.processes.is_first:  # which alone measures
        measured = (".moments", ".uncolored_sums", ".uncolored_faces")
        weights = {name: weight for name, weight in weights.items() if not name.endswith(measured)}
    named = re.findall(r"ordinals (\d+ to \d+)", trainer.lines.getvalue())
    averages = {} if trainer.averages is None else trainer.averages.state_dict()
    # A weight's way is that of the weights: they are compared by the same measure.
    averaged = {name.partition("/")[2]: value.numpy() for name, value in averages.items() if name.startswith("3/")}
    steps = averaged.pop("@steps", None)
    result = {"step": trainer.step, "shown": _shown(trainer), "named": named, "weights": weights}
    return result | {"start": trainer.start, "averaged": averaged, "averaged_steps": steps}


# --- what one of the processes does -----------------------------------------------------------------------


def train_each(processes, folder, scenarios):
    """Every scenario from the first step to the last."""
    results = {}
    for name, given in scenarios.items():
        trainer = _trainer(processes, folder / name, **given)
        trainer.train()
        results[name] = _result(trainer)
    return results


def train_in_parts(processes, folder, given, stops):
    """A run that ends after some steps and is taken up again."""
    for iterations in stops:
        # Of another seed each: weights must come from rank 0 and its checkpoint.
        trainer = _trainer(processes, folder, iterations, seed=processes.rank and 100 + iterations, **given)
        trainer.train()
    return _result(trainer)


def stand_still(processes):
    """Twelve windows of losses that stay, which rank 0 alone knows; return the rate behind each."""
    config = OptimizerConfig(learning_rate=0.5, schedule="plateau", plateau_patience=10)
    optimizer, training = Optimizer(torch.nn.Linear(1, 1), config), types.SimpleNamespace(fetch_losses=lambda: None)
    watch, rates = PlateauWatch(optimizer, "validation_total", processes, lambda line: None), []
    for training.step in range(1, 13):
        if processes.is_first:
            watch.on_report(training.step, {"validation_total": 1.0})
        watch.on_step(training)
        rates.append(optimizer.learning_rate)
    return rates


def stop_on_the_last(processes, folder):
    last = processes.rank == processes.world - 1
    trainer = _trainer(processes, folder, 50, stop_at=3 if last else None)
    trainer.train()
    return trainer.step, bool(trainer.run.stop)


def count_exchanges(processes, folder):
    """How many more times the hosts speak in a run of ten steps than in one of four."""
    counts = []
    for iterations in (4, 10):
        before = processes.host._get_sequence_number_for_group()
        _trainer(processes, folder / str(iterations), iterations).train()
        counts.append(processes.host._get_sequence_number_for_group() - before)
    return counts[1] - counts[0]


def find_rate(processes, folder):
    trainer = _trainer(processes, folder, 50)
    finder = LearningRateFinder(trainer, steps=12, start_lr=1e-5, folder=folder / f"found{processes.rank}")
    finder.find()
    return finder.curve.losses, finder.best_lr, (folder / f"found{processes.rank}").exists()


def die_in_the_middle(processes, folder, how):
    trainer = _trainer(processes, folder, 3)
    trainer.train()  # which leaves a checkpoint
    trainer.run.iterations = 100
    if processes.rank == 1:
        trainer.batches = _dying(trainer.batches, how)
    trainer.train()


def _dying(batches, how):
    yield next(batches)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise SwapfastError("out of luck", EXIT_FAILED)


def disagree(processes, folder):
    processes.check_same("the faces", "the same")
    processes.check_same("the masks", str(processes.rank))
    processes.any_on_hosts(True)


def train_or_die(processes, folder, dies):
    processes.check_same("the faces", "the same")  # what an earlier start told must not be heard
    trainer = _trainer(processes, folder, 6 if dies else 9)
    if dies and processes.rank == 1:
        trainer.batches = _dying(trainer.batches, "failed")
    trainer.train()
    return trainer.step


def leave_late(processes, log, seconds):
    if processes.is_first:
        time.sleep(seconds)
        log.touch()
    return log.exists  # asked after leaving


def fail_before_tensors(processes):
    """Rank 0 finds no checkpoint to go back to, and the others wait for it."""
    if processes.is_first:
        raise SwapfastError("nothing to go back to", EXIT_FAILED)
    processes.broadcast_tensors(None)


def leave_early(processes):
    if not processes.is_first:
        processes.wait_for("what nobody tells")


# --- starting them ----------------------------------------------------------------------------------------


def _one_of(rank, world, environment, task, arguments, results):
    os.environ.update(
        GLOO, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", **environment,
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        with join_processes("cpu") as processes:
            result = task(processes, *arguments)
        result = result() if callable(result) else result
    except SwapfastError as error:
        result = error
        results.put((rank, type(error).__name__, str(error), error.code))
    else:
        results.put((rank, result))
    results.close()
    results.join_thread()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(world, task, *arguments, silent=0, environment=None):
    """What ``task(processes, *arguments)`` gave on each rank; nothing of the ``silent`` that die without a word."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(FORKED)
    results, environment = context.Queue(), environment or {"MASTER_PORT": str(_free_port())}
    workers = [
        context.Process(target=_one_of, args=(rank, world, environment, task, arguments, results))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    try:
        got = sorted((results.get(timeout=LIMIT_S) for _ in range(world - silent)), key=lambda one: one[0])
        for worker in workers:
            worker.join(LIMIT_S)
        return [one[1] if len(one) == 2 else one[1:] for one in got]
    finally:
        for worker in workers:
            worker.kill()


def _difference(one, other, start) -> float:
    """Return how far the weights of two runs are apart, as a share of the way of ``other`` from ``start``."""
    weights = {name: weight for name, weight in other.items() if not name.startswith("statistics.")}
    apart = math.sqrt(sum(np.square(one[name] - weight, dtype=float).sum() for name, weight in weights.items()))
    way = math.sqrt(sum(np.square(start[name] - weight, dtype=float).sum() for name, weight in weights.items()))
    return apart / way


def _statistics_difference(one, other) -> float:
    """Return how far the running statistics of two runs are apart, as a share of the largest of each layer."""
    names = [name for name in one if name.endswith((".moments", ".slopes"))]
    assert all(np.abs(other[name]).max() > 0.1 for name in names)
    names += [name for name in one if name.endswith(".uncolored_sums") and other[name].any()]
    return max((np.abs(one[name] - other[name]).max() / np.abs(other[name]).max() for name in names), default=0.0)


def _equal(one, other, within, name, tolerance=TOLERANCE, loss_tolerance=5e-5):
    assert one["step"] == other["step"]
    # Five digits are shown, of which the last may go either way.
    assert one["shown"] == pytest.approx(other["shown"], abs=loss_tolerance)
    within(f"weights, {name}", _difference(one["weights"], other["weights"], other["start"]), tolerance)
    if one["averaged"]:
        assert one["averaged_steps"] == other["averaged_steps"] > 0
        within(f"averages, {name}", _difference(one["averaged"], other["averaged"], other["start"]), 2 * tolerance)
        assert _difference(one["averaged"], other["weights"], other["start"]) > 0.01, "they are not the weights"
    # Weights that are apart by a share give features that are apart by about as much.
    within(f"statistics, {name}", _statistics_difference(one["weights"], other["weights"]), 10 * tolerance)


SCENARIOS = {
    "plain": {"iterations": 6},
    "normalised": {"iterations": 6, "code": "encoder", "ema": "3"},
    "accumulated and clipped": {
        "iterations": 6, "gradient_accumulation": 2, "gradient_clipping": "global_norm", "clipping_value": 0.5,
        "schedule": "linear", "decay_share": 100.0, "landmark_weight": 0.5,
    },
    "autoclip": {"iterations": 6, "gradient_clipping": "autoclip"},
    "a NaN on one": {"iterations": 6, "poison": (2,), "nan": "skip", "ema": "3"},
    "bf16": {"iterations": 3, "precision": "bf16"},
    "gradients in bf16": {"iterations": 6, "exchange": "bf16", "gradient_accumulation": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world, names", [(2, tuple(SCENARIOS)), (4, ("plain", "normalised", "a NaN on one"))])
def test_several_processes_train_like_one(world, names, tmp_path, within):
    """Five faces a step, which neither two nor four share evenly; all copies are the same to the bit."""
    scenarios = {name: SCENARIOS[name] for name in names}
    alone = train_each(SINGLE_PROCESS, tmp_path / "alone", scenarios)
    several = together(world, train_each, tmp_path / "several", scenarios)
    for name, expected in alone.items():
        assert len(expected["shown"]) >= 4
        of_colors = [value for key, value in expected["weights"].items() if "uncolored_sums" in key and value.any()]
        assert len(of_colors) == ("code" in SCENARIOS[name]), "plain codes say it by their means"
        assert all(sums.any(1).all() for sums in of_colors), "of the code, both sides"
        assert several[0][name]["named"] == expected["named"] == (["13 to 17"] if "NaN" in name else [])
        for one in several:
            assert all(np.array_equal(several[0][name]["weights"][k], v) for k, v in one[name]["weights"].items())
        tolerances = (BFLOAT16_TOLERANCE, 1e-3) if "bf16" in name else ()
        _equal(several[0][name], expected, within, f"{world} processes, {name}", *tolerances)
        if name == "gradients in bf16":
            apart = _difference(several[0][name]["weights"], expected["weights"], expected["start"])
            assert apart > 3e-4, "8 bits part them by more than float32 does"
    assert not (tmp_path / "several" / "plain" / "model1").exists(), "rank 0 alone writes"


@pytest.mark.slow
def test_a_run_of_several_goes_on_in_the_middle_of_a_step(tmp_path, within):
    """Three losses make a step here, and both stops lie between. Only rank 0 has the checkpoint."""
    given = {"gradient_accumulation": 3, "code": "encoder", "ema": "3"}
    straight = train_each(SINGLE_PROCESS, tmp_path / "alone", {"": given | {"iterations": 9, "seed": 0}})[""]
    parted = together(2, train_in_parts, tmp_path / "several", given, (4, 5, 9))
    for one in parted:
        _equal({**one, "shown": []}, {**straight, "shown": []}, within, "in three parts")


@pytest.mark.slow
def test_going_back_to_a_checkpoint_that_only_one_has(tmp_path, within):
    given = {"iterations": 6, "poison": (4,), "nan": "rollback"}
    alone = train_each(SINGLE_PROCESS, tmp_path / "alone", {"": given})[""]
    for one in together(2, train_each, tmp_path / "several", {"": given}):
        _equal(one[""], alone, within, "rolled back")


@pytest.mark.slow
def test_all_lower_the_rate_where_the_first_finds_a_plateau():
    assert together(2, stand_still) == [[0.5] * 10 + [0.25] * 2] * 2


@pytest.mark.slow
def test_a_request_to_one_stops_all_at_the_same_step(tmp_path):
    stopped = together(3, stop_on_the_last, tmp_path)
    assert stopped == [(4, True)] * 3
    assert CheckpointFolder(tmp_path / "model0").steps() == [4]


@pytest.mark.slow
def test_hosts_speak_once_a_step(tmp_path):
    assert together(2, count_exchanges, tmp_path) == [6, 6]


@pytest.mark.slow
def test_all_look_at_one_curve_for_a_learning_rate(tmp_path):
    expected, rate, _ = find_rate(SINGLE_PROCESS, tmp_path)
    (first, one, wrote), (second, other, also) = together(2, find_rate, tmp_path / "several")
    assert first == second == pytest.approx(expected, rel=1e-3)
    assert one == other == pytest.approx(rate) and wrote and not also


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_process_that_dies_ends_the_run(how, tmp_path):
    """In seconds, with one reason, and a checkpoint to go on from."""
    begun = time.monotonic()
    ends = together(3, die_in_the_middle, tmp_path, how, silent=1 if how == "killed" else 0)
    assert time.monotonic() - begun < 60
    spoken = [end for end in ends if end[1]]
    assert len(spoken) == 1 and {end[0] for end in ends if end not in spoken} == {FailedElsewhere.__name__}
    assert ("another process of this run is gone" if how == "killed" else "out of luck") in spoken[0][1]
    assert {end[2] for end in ends} == {EXIT_FAILED}
    assert CheckpointFolder(tmp_path / "model0").load()[0].step == 3


@pytest.mark.slow
def test_machines_that_hold_different_faces_are_refused(tmp_path):
    silent, spoken = sorted(together(2, disagree, tmp_path), key=lambda end: end[1])
    assert silent[0] == FailedElsewhere.__name__ and "the masks of rank 1 differ from those of rank 0" in spoken[1]


@pytest.mark.slow
def test_a_restart_hears_nothing_of_the_start_before(tmp_path):
    """torchrun keeps the store while it starts its processes again; here the test does."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    kept = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    first = together(2, train_or_die, tmp_path, True, environment=kept)
    assert {end[2] for end in first} == {EXIT_FAILED} and any("out of luck" in end[1] for end in first)
    assert together(2, train_or_die, tmp_path, False, environment=kept) == [9, 9]


@pytest.mark.slow
def test_the_others_stay_until_the_first_is_done(tmp_path):
    """torchrun ends rank 0 as soon as another leaves with a code, and rank 0 may be saving."""
    log = tmp_path / "done"
    left = together(3, leave_late, log, 1.5)
    assert left == [True] * 3


@pytest.mark.slow
def test_nobody_waits_for_the_tensors_of_one_that_failed():
    begun = time.monotonic()
    first, *rest = together(3, fail_before_tensors)
    assert first[1] == "nothing to go back to" and {end[0] for end in rest} == {FailedElsewhere.__name__}
    assert {end[2] for end in (first, *rest)} == {EXIT_FAILED} and time.monotonic() - begun < LIMIT_S / 2


@pytest.mark.slow
def test_nobody_waits_for_one_that_left(tmp_path):
    begun = time.monotonic()
    first, other = together(2, leave_early)
    assert first is None and other[0] == FailedElsewhere.__name__ and time.monotonic() - begun < LIMIT_S / 2


@pytest.mark.slow
def test_one_that_lives_is_waited_for_and_one_that_does_not_is_not(monkeypatch):
    monkeypatch.setattr(distributed, "TIMEOUT", datetime.timedelta(seconds=0.5))
    monkeypatch.setattr(distributed, "_HEARTBEAT_S", 0.1)
    store = torch.distributed.HashStore()
    slow, waiting = (Processes(rank, 2, store=store) for rank in range(2))

    def decode():
        with slow.heartbeat():
            time.sleep(1.5)
            slow.publish("ready", True)

    thread = threading.Thread(target=decode)
    thread.start()
    assert waiting.wait_for("ready", by=0) is True
    thread.join()
    with pytest.raises(SwapfastError, match="rank 0 is gone"):
        waiting.wait_for("more", by=0)


# --- the program ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(drawn) -> Path:
    return drawn(40, 64)


# torchrun, of which each process is a fork as well.
TORCHRUN = """
from tests import preloaded
preloaded.fork_own_programs()
from torch.distributed.run import main
main()
"""


def _torchrun(world, *arguments, restarts=0):
    command = [
        sys.executable, "-c", TORCHRUN, "--standalone", "--max-restarts", str(restarts), "--nproc-per-node", str(world),
        "cli.py",
    ]  # fmt: skip
    return preloaded.Popen(
        [*command, "train", *map(str, arguments), "--device", "cpu"],
        cwd=ROOT, env=os.environ | GLOO | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def _ended(process):
    """(stdout, stderr) of a torchrun and all it started, in bounded time."""
    try:
        return process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for_checkpoint(model, process):
    deadline = time.monotonic() + LIMIT_S
    while not CheckpointFolder(model).steps() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)


def _signal_second(process, number):
    """To the second of a torchrun's processes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), number)


def _flags(faces, model):
    return ["-A", faces / "a", "-B", faces / "b", "-m", model, "-t", "tiny", "-b", "5", "--preview-images", "2",
            "--optimizer", "adam", "--learning-rate", LEARNING_RATE, "--warmup", "0",
            "--set", f"optimizer.epsilon_exponent={EPSILON}"]  # fmt: skip


@pytest.mark.long
def test_a_signal_to_one_of_torchruns_processes_saves_what_one_process_would(faces, tmp_path, capsys, within):
    several, alone = tmp_path / "several", tmp_path / "alone"
    process = _torchrun(2, *_flags(faces, several), "-i", 10**6, "-s", 5)
    _wait_for_checkpoint(several, process)
    _signal_second(process, signal.SIGTERM)
    out, err = _ended(process)
    found = re.search(r"stopped by .* and saved at iteration (\d+);", out)
    assert found, out + err
    assert process.returncode == 1 and f"exitcode  : {EXIT_STOPPED} " in err, "torchrun has one code for all"
    assert out.count("side A: 40 faces") == out.count("saved at iteration") == 1, "one process speaks"
    assert "on cpu in fp32, 1 thread, 2 processes, batch 5 per side" in out

    step = int(found[1])
    assert CheckpointFolder(several).steps()[-1] == step
    start = tmp_path / "start"
    for model, steps in ((start, 1), (alone, step)):
        assert cli.main([*map(str, ["train", *_flags(faces, model), "-i", steps, "--device", "cpu"])]) == EXIT_DONE
    ends = ((several, step), (alone, step), (start, 1))
    weights = [load_numpy(model / f"checkpoint-{steps:08d}" / "model.safetensors") for model, steps in ends]
    within(f"weights after {step} steps", _difference(*weights), MANY_STEPS_TOLERANCE)
    assert "going on" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_request_is_answered_once(faces, tmp_path):
    process = _torchrun(2, *_flags(faces, tmp_path / "model"), "-b", 1)
    _, err = _ended(process)
    assert process.returncode == 1 and err.count("swapfast: ") == 1
    assert "-b/--batch-size 1: 2 processes need at least one face each" in err


@pytest.mark.long
def test_a_finished_run_may_be_started_again(faces, tmp_path):
    """As a cluster does that gives a job back: rank 0 says so and leaves, and the others do not wait for its faces."""
    flags = [*_flags(faces, tmp_path / "model"), "-i", 3]
    assert cli.main([*map(str, ["train", *flags, "--device", "cpu"])]) == EXIT_DONE
    process = _torchrun(2, *flags)
    out, err = _ended(process)
    assert process.returncode == 0 and out.count("3 iterations are trained already") == 1, out + err


@pytest.mark.long
def test_a_run_at_its_limit_is_not_restarted_and_its_last_copy_is_made(faces, tmp_path):
    copied, limit = tmp_path / "copied", tmp_path / "limit"
    process = _torchrun(
        2, *_flags(faces, tmp_path / "model"), "-i", 10**6, "-s", 5, "--stop-file", limit,
        "--after-save", f"sleep 3; touch {copied}", restarts=2,
    )  # fmt: skip
    _wait_for_checkpoint(tmp_path / "model", process)
    limit.touch()
    out, err = _ended(process)
    assert process.returncode == 0 and out.count("stopped by ") == 1, out + err
    assert "code 0, so that torchrun does not restart it" in out and "not waited for" not in out
    assert copied.exists()


@pytest.mark.long
def test_a_process_that_was_killed_is_restarted(faces, tmp_path):
    model = tmp_path / "model"
    process = _torchrun(2, *_flags(faces, model), "-i", 20, "-s", 5, restarts=1)
    _wait_for_checkpoint(model, process)
    _signal_second(process, signal.SIGKILL)
    out, err = _ended(process)
    assert process.returncode == 0, out + err
    assert "going on from iteration" in out and "done: 20 iterations" in out


def test_the_place_of_a_process_is_read_from_torchruns_variables():
    assert place_of({}) == place_of({"RANK": "0", "WORLD_SIZE": "1"}) == place_of({"LOCAL_RANK": "0"}) == Place()
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    meeting = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    assert place_of(variables | meeting) == Place(5, 8, 1, 4, "node1", 29500)
    assert place_of({"RANK": "1", "WORLD_SIZE": "2"} | meeting) == Place(1, 2, 0, 1, "node1", 29500)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "x"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "2.0"),
        ("WORLD_SIZE", "9" * 400),
        ("RANK", None),
        ("RANK", ""),
        ("RANK", "-1"),
        ("RANK", "2"),
        ("RANK", "one"),
        ("LOCAL_RANK", "x"),
        ("LOCAL_RANK", "2"),
        ("LOCAL_RANK", "-1"),
        ("LOCAL_WORLD_SIZE", "3"),
        ("LOCAL_WORLD_SIZE", "0"),
        ("MASTER_ADDR", None),
        ("MASTER_ADDR", " "),
        ("MASTER_PORT", None),
        ("MASTER_PORT", "http"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "70000"),
    ],
)
def test_variables_that_cannot_be_are_refused_by_name(name, value):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", name: value}
    with pytest.raises(SwapfastError, match=f"^{name}: .*torchrun") as refusal:
        place_of({key: text for key, text in variables.items() if text is not None})
    assert "\n" not in str(refusal.value) and refusal.value.code == 2


def test_a_rank_without_the_number_of_processes_is_refused():
    with pytest.raises(SwapfastError, match=r"^RANK: 1, "):
        place_of({"RANK": "1"})


def _alone(rank, faces, model, *flags, address="127.0.0.1"):
    """Start a process of two of which the other never comes."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(_free_port())}
    command = [sys.executable, "-m", "swapfast", "train", *_flags(faces, model), "-i", "2", "--device", "cpu", *flags]
    environment = os.environ | GLOO | place
    return preloaded.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


@pytest.mark.long
@pytest.mark.parametrize(("rank", "how"), [(0, "SIGTERM"), (1, "SIGTERM"), (1, "--max-time")])
def test_whoever_waits_for_the_others_hears_a_request_to_stop(rank, how, faces, tmp_path):
    process = _alone(rank, faces, tmp_path / "model", "--max-time", "12" if how == "--max-time" else "500")
    try:
        line = process.stderr.readline()
        assert f"rank {rank} waits for the others (2 in all, at 127.0.0.1:" in line
        asked = time.monotonic()
        if how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=LIMIT_S)
        assert process.returncode == EXIT_STOPPED and f"stopped by {how}" in complaints
        assert "Traceback" not in complaints and time.monotonic() - asked < 20
    finally:
        process.kill()


@pytest.mark.slow
def test_an_address_that_nobody_knows_is_refused(faces, tmp_path):
    process = _alone(1, faces, tmp_path / "model", address="no-such-host.invalid")
    _, complaints = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2 and complaints.count("\n") == 1
    assert "MASTER_ADDR: 'no-such-host.invalid' is not known" in complaints


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_tasks_that_know_nothing_of_each_other_are_told_of_torchrun(name):
    line = several_tasks({name: "4"})
    assert f"4 tasks ({name})" in line and "torchrun" in line and "\n" not in line
    assert several_tasks({name: "1"}) == several_tasks({name: "many"}) == several_tasks({}) == ""
