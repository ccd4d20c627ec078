"""The layer that reads landmarks off the codes of both people: what it changes in a training, and what it does not."""

from __future__ import annotations

import io
import itertools

import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.checkpoints.transfer import freeze, load_weights_from, trained_state
from swapfast.config import ModelConfig, OptimizerConfig
from swapfast.losses import LossCollator
from swapfast.models.registry import build_model
from swapfast.optim.optimizer import Optimizer
from swapfast.training.averages import WeightAverages
from swapfast.training.progress import ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.swap.test_swap_command import save_model
from tests.toy import SIZE, toy

SMALL = {"input_size": 64, "ae_dims": 16, "e_dims": 8, "d_dims": 8}
WEIGHT = 0.5


def _batches(step: int = 0):
    """Faces whose brightness goes up along x or down, and landmarks that say which; in noise."""
    while True:
        generator = torch.Generator().manual_seed(step)
        slope = torch.randn(2, 6, generator=generator)
        ramp = torch.linspace(-1, 1, SIZE).expand(2, 6, 3, SIZE, SIZE)
        noise = torch.randn(2, 6, 3, SIZE, SIZE, generator=generator)
        faces = (0.5 + 0.2 * slope[..., None, None, None] * ramp + 0.05 * noise).clamp(0, 1)
        masks = torch.ones(6, 2, 1, SIZE, SIZE)
        landmarks = list(slope[..., None].expand(2, 6, 136).contiguous())
        yield Batch(list(faces), [faces.transpose(0, 1)], BatchMeta([masks]), step, landmarks)
        step += 1


def _model(reads: bool = True, seed: int = 1):
    model = toy().with_code("encoder").initialise(seed)
    return model.with_landmark_reader() if reads else model


def _loss(weight: float) -> LossCollator:
    return LossCollator(["mae"], [1.0], "bgr", True, 1, 1, SIZE, landmark_weight=weight)


def _trainer(model, folder, until: int, weight: float = WEIGHT, **given) -> Trainer:
    """A trainer that goes on from the newest checkpoint, where there is one."""
    checkpoints = CheckpointFolder(folder)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=2e-3, **given))
    loaded, step = checkpoints.load(), 0
    if loaded is not None:
        step = loaded[0].step
        model.load_trained(loaded[0].tensors["model"])
        optimizer.load_state_dict(trained_state(model, loaded[0].tensors["optimizer"]))
    run = Run(checkpoints, until, 1000, progress=ProgressLine(io.StringIO()))
    return Trainer(model, _loss(weight), optimizer, _batches(step), run, step)


def _trained(*arguments, **given):
    trainer = _trainer(*arguments, **given)
    trainer.train()
    return dict(trainer.model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "bottleneck", "plain"])
@pytest.mark.parametrize("name", ["tiny", "liae-ud", "df"])
def test_every_model_has_a_code_to_read(name, kind, within):
    config = ModelConfig(name=name, code=kind, **({} if name == "tiny" else SMALL))
    model = build_model(config, False, 1).train()
    edge = model.input_size
    faces = torch.rand(2, 4, 3, edge, edge, generator=torch.Generator().manual_seed(1))
    without = model([*faces], cycles=True)
    reading = build_model(config, False, 1).train().with_landmark_reader()
    outputs = reading([*faces], cycles=True)
    assert len(outputs) == len(without) + 1
    assert all(torch.equal(a, b) for one, two in zip(without, outputs) for a, b in zip(one, two))
    assert [tuple(side.shape) for side in outputs[-1]] == [(4, 136)] * 2 and not any(s.any() for s in outputs[-1])
    assert reading.parts().keys() == model.parts().keys()
    with torch.no_grad():
        reading.landmark_reader.weight.normal_()
        reading.landmark_reader.bias.fill_(1.0)
    read = reading([*faces])[-1]
    (read[0].square().sum() + read[1].square().sum()).backward()
    moved = {n.partition(".")[0] for n, p in reading.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"encoder", "landmark_reader"}
    if kind != "plain" and name != "liae-ud":  # whose code is not what is normalised last
        # Normalised codes have the mean 0 on each side, so what is read has the layer's bias for a mean.
        for side in read:
            within("mean of what is read", abs(side.mean().item() - 1), 1e-4)


def test_the_error_is_added_to_the_loss():
    model = _model()
    trainer = Trainer(model, _loss(WEIGHT), Optimizer(model, OptimizerConfig()), _batches())
    batch = next(_batches())
    losses = trainer.train_one_batch()
    for side, loss in enumerate(losses):
        expected = batch.landmarks[side].square().mean(1)  # the reader begins with zeros
        assert torch.equal(loss.unweighted[-1]["landmarks"], expected)
        assert torch.equal(loss.weighted[-1]["landmarks"], WEIGHT * expected)
        torch.testing.assert_close(loss.total, loss.weighted[-1]["mae"].mean() + WEIGHT * expected.mean())


@pytest.mark.long
def test_the_code_learns_what_the_landmarks_tell(tmp_path):
    """And one layer reads it off both people's codes: without the weight they say nothing to it."""
    errors = {}
    for weight in (0.0, WEIGHT):
        model = _model()
        _trained(model, tmp_path / str(weight), 60, weight)
        batch = next(_batches(999))
        read = model(batch.inputs)[-1]
        errors[weight] = [(a - b).square().mean().item() for a, b in zip(read, batch.landmarks)]
    assert max(errors[WEIGHT]) < 0.5 * min(errors[0.0])


@pytest.mark.slow
def test_going_on_is_exact(tmp_path):
    whole = _trained(_model(), tmp_path / "whole", 7, gradient_accumulation=2)
    _trained(_model(), tmp_path / "parts", 3, gradient_accumulation=2)
    resumed = _trained(_model(seed=2), tmp_path / "parts", 7, gradient_accumulation=2)
    assert whole["landmark_reader.weight"].any()
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_weight_may_come_and_go(tmp_path, optimizer):
    """A model that was begun without goes on with it, from zeros, and the other way round."""
    first = _trained(_model(False), tmp_path / "m", 3, 0.0, optimizer=optimizer)
    second = _trained(_model(True, 2), tmp_path / "m", 5, optimizer=optimizer)
    assert second["landmark_reader.weight"].any()
    third = _trained(_model(False, 3), tmp_path / "m", 7, 0.0, optimizer=optimizer)
    assert third.keys() == first.keys() and not torch.equal(third["encoder.0.0.weight"], second["encoder.0.0.weight"])
    straight = _trained(_model(False), tmp_path / "straight", 3, 0.0, optimizer=optimizer)
    torch.testing.assert_close(straight, first, rtol=0, atol=0)


def test_averages_and_other_models_do_without_it(tmp_path):
    model = _model()
    averages = WeightAverages(model, [3])
    assert not any("landmark" in name for name in averages.state_dict())
    assert averages.averaged_model(3)([torch.rand(4, 3, SIZE, SIZE)] * 2)[-1][0].shape == (4, 136)
    weights = dict(model.state_dict())
    plain = _model(False, 2)
    plain.load_trained(weights)
    assert torch.equal(plain.encoder[0][0].weight, model.encoder[0][0].weight)
    with pytest.raises(RuntimeError):
        plain.load_trained(weights | {"other.weight": torch.zeros(1)})


def test_weights_of_another_model_leave_the_reader_at_zero(tmp_path):
    config = ModelConfig(name="tiny", code="encoder")
    save_model(tmp_path / "m")
    model = build_model(config, False, 2).with_landmark_reader()
    transfer = load_weights_from(model, tmp_path / "m")
    assert transfer.loaded == transfer.total and "landmark_reader" not in transfer.total and not transfer.skipped
    assert not model.landmark_reader.weight.any()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["gone", "added", "frozen"])
def test_going_back_to_a_checkpoint_of_other_trained_weights(tmp_path, change):
    """The first step behind a start with other flags is broken; what there is to go back to was saved with others."""
    before = _trained(_model(change != "added"), tmp_path / "m", 3, 0.0 if change == "added" else WEIGHT)
    model = _model(change != "gone", 2)
    freeze(model, ["encoder"] if change == "frozen" else [])
    trainer = _trainer(model, tmp_path / "m", 6, 0.0 if change == "gone" else WEIGHT)
    trainer.run.nan, trainer.run.saved_step = "rollback", 3
    broken = next(_batches(3))
    broken.inputs[0][0, 0, 0, 0] = float("nan")
    trainer.batches = itertools.chain([broken], _batches(4))
    trainer.train()
    after = trainer.model.state_dict()
    assert trainer.optimizer.rollbacks == 1 and all(weight.isfinite().all() for weight in after.values())
    assert torch.equal(after["encoder.0.0.weight"], before["encoder.0.0.weight"]) == (change == "frozen")
