"""The search for a learning rate: its numbers against faceswap's, its trace on the model none."""

from __future__ import annotations

import io
import itertools
import json

import cv2
import numpy as np
import pytest
import torch

from swapfast.config import LearningRateFinderConfig, OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.logs.plot import LEFT, RIGHT, WIDTH
from swapfast.optim.lr_finder import LearningRateFinder, LossCurve, LRStrength, sweep
from swapfast.training.progress import ProgressLine
from tests.training.test_trainer import _batches, _trainer


@pytest.mark.golden
@pytest.mark.parametrize("case", ["u_shape", "diverge", "nan", "flat"])
def test_the_curve_is_the_peers_at_the_rates_that_were_used(case, golden, within):
    """The peer notes a rate after raising it: each of ours is one ratio lower, and so is the found one."""
    stored = golden("lr_finder")
    params = json.loads((golden.folder / "manifest.json").read_text())["files"]["lr_finder.npz"]["params"]
    expected = params["cases"][case]
    start, end, steps = (expected[name] for name in ("start_lr", "end_lr", "steps"))
    curve = LossCurve()
    for rate, loss in zip(sweep(start, end, steps), stored[f"loss_{case}"]):
        if not curve.add(rate, loss):
            break
    ratio = (end / start) ** (1 / steps)
    assert len(curve.rates) == len(stored[f"lr_{case}"]) and curve.best == expected["best_index"]
    assert curve.diverged == (expected["stopped_at"] >= 0) and curve.rates[0] == start
    within("rates", np.abs(np.array(curve.rates) * ratio / stored[f"lr_{case}"] - 1).max(), 1e-12)
    within("smoothed", np.abs(np.array(curve.smoothed) / stored[f"smoothed_{case}"] - 1).max(), 1e-12)
    for strength in LRStrength:
        rate = curve.rates[curve.best] / strength.value
        within(strength.name, abs(rate * ratio / expected[strength.name.lower()] - 1), 1e-12)


def _finder(trainer, steps=40, **options):
    options = {"start_lr": 1e-5, "end_lr": 10.0, **options}
    return LearningRateFinder(
        trainer, None, steps, options.pop("strength", "default"), options.pop("mode", "set"), **options
    )


def _state(trainer) -> dict[str, torch.Tensor]:
    state = trainer.model.state_dict() | trainer.optimizer.state_dict()
    return {key: value.detach().cpu().clone() for key, value in state.items()}


CONFIGS = {
    "plain": {},
    "adabelief": {"optimizer": "adabelief", "epsilon_exponent": -16, "gradient_clipping": "autoclip"},
    "accumulation": {"gradient_accumulation": 2, "gradient_clipping": "autoclip"},
}


@pytest.mark.long
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("trained", [0, 3])
def test_a_search_leaves_no_trace(case, trained, tmp_path, device):
    """Weights, averages, waiting gradients, history, warm-up, step, batches: training goes on as if it had not been."""
    config = OptimizerConfig(learning_rate=1e-3, **CONFIGS[case])
    straight, searched = (
        _trainer(tmp_path / name, device, 99, config=config, warmup=6, rewinds=True) for name in ("one", "two")
    )
    for trainer in (straight, searched):
        for _ in range(trained):
            trainer.train_one_batch()
    finder = _finder(searched, 12)
    finder.find()
    assert len(finder.curve.rates) > 5
    assert searched.step == trained
    expected, actual = _state(straight), _state(searched)
    assert expected.keys() == actual.keys()
    exact = device.type == "cpu"
    for key, value in expected.items():
        assert torch.equal(value, actual[key]) if exact else torch.allclose(value, actual[key], rtol=1e-4), key
    for _ in range(3):
        losses = [[side.total.item() for side in t.train_one_batch()] for t in (straight, searched)]
        assert losses[0] == losses[1] if exact else losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_what_is_found_trains_well_and_is_drawn(tmp_path, device):
    trainer = _trainer(tmp_path, device, 99, rewinds=True)
    seen = []
    has_rate = trainer.optimizer.find_learning_rate(
        trainer,
        60,
        1e-5,
        10.0,
        mode="graph_and_set",
        folder=tmp_path / "model",
        progress=lambda *at: seen.append(at),
    )
    result = json.loads((tmp_path / "model" / "lr_finder.json").read_text())
    rate = result["learning_rate"]
    assert has_rate and 1e-5 < rate < 0.1 and trainer.optimizer.learning_rate == rate
    assert result["divisor"] == 10 and result["lowest_loss_at"] == pytest.approx(10 * rate)
    assert len(result["rates"]) == len(result["losses"]) == result["steps_made"] <= 60 and seen[-1] == (60, 60)
    picture = cv2.imread(str(tmp_path / "model" / "lr_finder.png")).astype(int)
    assert picture.shape == (540, 960, 3)
    red = (picture[..., 2] > picture[..., 0] + 100) & (picture[..., 2] > picture[..., 1] + 100)
    blue = (picture[..., 0] > picture[..., 2] + 100) & (picture[..., 0] > 120)
    line = np.flatnonzero(red[60:470].sum(0) > 300)
    assert len(line) and blue.any(0).sum() > 300, "the curve crosses the picture, and a line marks the rate"
    rates = result["rates"]
    place = LEFT + (np.log(rate / rates[0]) / np.log(rates[-1] / rates[0])) * (WIDTH - LEFT - RIGHT)
    assert abs(line.mean() - place) < 3
    first = sum(loss.total.item() for loss in trainer.train_one_batch())
    for _ in range(30):
        last = sum(loss.total.item() for loss in trainer.train_one_batch())
    assert last < 0.8 * first


@pytest.mark.slow
def test_stronger_is_faster(tmp_path, device):
    rates = {}
    for strength in ("default", "aggressive", "extreme"):
        finder = _finder(_trainer(tmp_path / strength, device, 99, rewinds=True), 10, strength=strength)
        finder.find()
        rates[strength] = finder.best_lr
    assert rates["aggressive"] == pytest.approx(2 * rates["default"], rel=1e-6)
    assert rates["extreme"] == pytest.approx(4 * rates["default"], rel=1e-6)


@pytest.mark.slow
def test_where_nothing_falls_nothing_is_found(tmp_path, device):
    """Rates that move nothing: the rate stays, the result says so."""
    trainer = _trainer(tmp_path, device, 99, rewinds=True)
    trainer.batches = itertools.repeat(next(_batches(device)))
    options = {"start_lr": 1e-12, "end_lr": 1e-9}
    finder = _finder(trainer, 10, mode="graph_and_exit", folder=tmp_path / "model", **options)
    finder.find()
    assert finder.best_lr is None
    assert json.loads((tmp_path / "model" / "lr_finder.json").read_text())["learning_rate"] is None
    assert not trainer.optimizer.find_learning_rate(trainer, 10, 1e-12, 1e-9)
    assert trainer.optimizer.learning_rate == 1e-3


def test_a_loss_that_only_rises_finds_nothing(tmp_path, device):
    """Also where the search begins at a rate that is already too high. Each step leads away from what is nearly met."""
    trainer, batch = _trainer(tmp_path, device, 99), next(_batches(device))
    with torch.no_grad():
        made = [outputs[0] for outputs in trainer.model(batch.inputs)]
    batch.targets = [torch.stack(made, 1) + 0.01]
    trainer.batches = itertools.repeat(batch)
    assert not trainer.optimizer.find_learning_rate(trainer, 10, 100.0, 1e4)
    assert trainer.optimizer.learning_rate == 1e-3


def test_gradients_that_are_not_finite_end_the_search(tmp_path, device):
    """Else the rate would rise over weights that no step reaches, and one of these rates be found."""
    trainer = _trainer(tmp_path, device, 99, rewinds=True)
    weight, calls = next(trainer.model.parameters()), itertools.count()
    weight.register_hook(lambda gradient: gradient * (torch.nan if next(calls) >= 5 else 1))
    finder = _finder(trainer)
    finder.find()
    assert finder.curve.diverged and len(finder.curve.rates) == 5


def test_a_search_without_a_finite_loss_leaves_no_graph_of_another(tmp_path, device):
    """And without a way back to the first batch the count of iterations is put back all the same."""
    folder = tmp_path / "result"
    trainer = _trainer(tmp_path, device, 99, poison=range(99))
    folder.mkdir()
    (folder / "lr_finder.png").write_bytes(b"an older one")
    finder = _finder(trainer, mode="graph_and_set", folder=folder)
    finder.find()
    assert finder.best_lr is None and finder.curve.diverged and trainer.step == 0
    assert [path.name for path in folder.iterdir()] == ["lr_finder.json"]


@pytest.mark.slow
def test_graph_and_exit_sets_nothing(tmp_path, device):
    trainer = _trainer(tmp_path, device, 99, rewinds=True)
    assert trainer.optimizer.find_learning_rate(trainer, 20, 1e-5, 10.0, mode="graph_and_exit")
    assert trainer.optimizer.learning_rate == 1e-3


def test_a_request_to_stop_ends_the_search(tmp_path, device):
    trainer = _trainer(tmp_path, device, 99, rewinds=True, output=io.StringIO())
    expected = _state(trainer)
    folder = tmp_path / "result"
    stop = trainer.run.stop
    finder = _finder(trainer, folder=folder, progress=lambda count, _: stop.request("SIGTERM") if count == 4 else None)
    finder.find()
    assert finder.best_lr is None and len(finder.curve.rates) == 4 and not folder.exists()
    assert all(torch.equal(value, _state(trainer)[key]) for key, value in expected.items())
    assert isinstance(trainer.run.progress, ProgressLine)


@pytest.mark.slow
def test_a_scheduler_gives_the_rates(tmp_path, device):
    """Its base rate and its ratio, as the ends of a search would; it is not stepped."""
    weight = torch.nn.Parameter(torch.zeros(1))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([weight], lr=1e-5), gamma=1.5)
    curves = []
    for ends in ({"scheduler": scheduler}, {"start_lr": 1e-5, "end_lr": 1e-5 * 1.5**12}):
        finder = LearningRateFinder(_trainer(tmp_path, device, 99, rewinds=True), steps=12, **ends)
        finder.find()
        curves.append(finder.curve)
    assert curves[0].rates == curves[1].rates and curves[0].losses == curves[1].losses
    assert curves[0].rates == pytest.approx([1e-5 * 1.5**step for step in range(len(curves[0].rates))])
    assert scheduler.get_last_lr() == [1e-5] and scheduler.last_epoch == 0
    falling = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([weight], lr=1e-5), gamma=0.9)
    with pytest.raises(SwapfastError, match="the rate rises from start to end"):
        LearningRateFinder(None, falling, 12)


def test_what_cannot_be_is_refused():
    for arguments, said in {
        (10, "bold", "set", 4, 0.98, 1e-10, 0.1): r"unknown --lr-finder-strength 'bold'.*aggressive, default, extreme",
        (10, "default", "graph", 4, 0.98, 1e-10, 0.1): r"unknown --lr-finder-mode 'graph'.*graph_and_exit",
        (10, "default", "set", 4, 0.98, 0.1, 1e-10): r"--lr-finder-start 0.1 with --lr-finder-end 1e-10",
        (10, "default", "set", 4, 0.98, 0.0, 0.1): r"--lr-finder-start 0 with",
        (10, "default", "set", 4, 1.0, 1e-10, 0.1): r"beta 1, .*a beta from 0 to below 1",
        (0, "default", "set", 4, 0.98, 1e-10, 0.1): r"finder: 0 steps",
    }.items():
        with pytest.raises(SwapfastError, match=said):
            LearningRateFinder(None, None, *arguments)
    with pytest.raises(SwapfastError, match=r"--lr-finder-start 0.001 with --lr-finder-end 1e-05: the rate rises"):
        LearningRateFinderConfig(start=1e-3, end=1e-5)
