"""Dropout of the code: what is dropped, that a resumed run drops the same, and that a finished model drops none."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.config import ModelConfig, OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import LossCollator
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up
from swapfast.models.dropout import DroppedDense, dense
from swapfast.models.registry import plan_model
from swapfast.optim.optimizer import Optimizer
from swapfast.swap.apply import swap_faces
from swapfast.training.progress import ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.training.test_graphed import Again


def _layer(share: float, seed: int = 1, outputs: int = 1000) -> DroppedDense:
    """A layer whose outputs are all ones until some are dropped."""
    layer = dense(4, outputs, share)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(1)
    layer.draws.fill_(seed << 32)
    return layer


def test_a_share_is_dropped_and_the_mean_stays(device):
    """Of 200 faces with 1000 values each, whose share has a deviation of 0.1 % of them and a bound of six of these."""
    for share in (0.1, 0.5, 0.9):
        layer = _layer(share).to(device)
        out = layer(torch.zeros(200, 4, device=device))
        values = out.unique().cpu()
        torch.testing.assert_close(values, torch.tensor([0, 1 / (1 - share)]))
        deviation = (share * (1 - share)) ** 0.5
        dropped = (out == 0).float()
        assert abs(dropped.mean().item() - share) < 6 * deviation / 200_000**0.5
        for axis, count in ((0, 200), (1, 1000)):  # no value and no face is dropped more than others
            assert (dropped.mean(axis) - share).abs().max() < 6 * deviation / count**0.5


def test_what_is_dropped_follows_from_seed_and_batch_alone(device):
    def draws(layer, steps):
        layer = layer.to(device)
        return [(layer(torch.zeros(8, 4, device=device)) == 0).cpu() for _ in range(steps)]

    first, second = draws(_layer(0.5), 2)
    torch.rand(3)  # torch's own generator has no part in it
    again = draws(_layer(0.5), 2)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    (other,) = draws(_layer(0.5, seed=2), 1)
    for one, two in itertools.combinations((first, second, other, first.roll(1, 0), first.roll(1, 1)), 2):
        assert abs((one == two).float().mean() - 0.5) < 6 * 0.5 / 8000**0.5, "no more alike than by chance"


def test_a_finished_model_drops_nothing():
    layer, plain = _layer(0.5).eval(), nn.Linear(4, 1000)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "draws"})
    faces = torch.rand(3, 4)
    assert torch.equal(layer(faces), plain(faces)) and layer.draws == 1 << 32


def test_dropout_may_begin_and_end_at_any_start():
    """The weights of a layer with dropout fit one without and the other way round."""
    dropped, plain = _layer(0.5), dense(4, 1000)
    dropped.draws.fill_(77)
    plain.load_state_dict(dropped.state_dict())
    assert torch.equal(plain.weight, dropped.weight)
    fresh = _layer(0.3, seed=9)
    fresh.load_state_dict(plain.state_dict())
    assert fresh.draws == 9 << 32
    fresh.load_state_dict(dropped.state_dict())
    assert fresh.draws == 77


def test_the_option_belongs_to_original():
    def layers(**options):
        with torch.device("meta"):
            model = plan_model(ModelConfig(**options), False)
        return [layer for layer in model.modules() if isinstance(layer, DroppedDense)]

    assert layers(name="original") == []
    (layer,) = layers(name="original", dropout=0.25)
    assert (layer.share, layer.in_features, layer.out_features) == (0.25, 16384, 1024)
    for name in ("lightweight", "tiny", "df-ud"):
        with pytest.raises(
            SwapfastError, match=rf"--dropout 0.25: is no option of the model '{name}'.*or train original"
        ):
            layers(name=name, dropout=0.25)
    for value in (-0.1, 0.95, float("nan")):
        with pytest.raises(SwapfastError, match="dropout"):
            ModelConfig(name="original", dropout=value)


def _model(share: float = 0.5, seed: int = 5) -> FaceAutoencoder:
    """Of original's kind, small."""
    encoder = nn.Sequential(
        down(3, 8),
        down(8, 16),
        nn.Flatten(),
        dense(16 * 256, 64, share),
        nn.Linear(64, 256),
        Unflatten(16, 4),
        up(16, 16),
    )

    def decoder() -> Decoder:
        return Decoder(nn.Sequential(up(16, 8), up(8, 8), up(8, 8), SameConv(8, 3, 5), nn.Sigmoid()))

    return FaceAutoencoder("small", 64, (64,), encoder, {side: decoder() for side in "ab"}).initialise(seed)


def _batches(start: int):
    for step in itertools.count(start):
        faces = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        masks = torch.ones(3, 2, 1, 64, 64)
        ordinals = np.arange(3 * step, 3 * step + 3, dtype=np.uint64)
        yield Batch([faces[0], faces[1]], [faces.transpose(0, 1)], BatchMeta([masks]), step, ordinals=ordinals)


@pytest.mark.slow
def test_steps_by_graphs_drop_the_same():
    """Also where a step is made a second time, to compare."""

    def steps(capturing):
        model = _model()
        optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-3))
        loss = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, 64)
        output = io.StringIO()
        run = Run(progress=ProgressLine(output))
        trainer = Trainer(model, loss, optimizer, _batches(0), run, capturing=capturing)
        losses = [sum(side.total.item() for side in trainer.train_one_batch()) for _ in range(8)]
        return losses, model.state_dict(), output.getvalue()

    graphs = Again()
    losses, weights, said = steps(graphs)
    plain, expected, _ = steps(None)
    assert graphs.replays > 3 and "warning" not in said
    assert losses == plain
    torch.testing.assert_close(dict(weights), dict(expected), rtol=0, atol=0)


def _train(folder, until: int) -> tuple[FaceAutoencoder, list[float]]:
    """Train up to an iteration, from the newest checkpoint on where there is one; return model and losses."""
    model, checkpoints = _model(), CheckpointFolder(folder)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-3))
    loaded, step = checkpoints.load(), 0
    if loaded is not None:
        step = loaded[0].step
        model.load_state_dict(loaded[0].tensors["model"])
        optimizer.load_state_dict(loaded[0].tensors["optimizer"])
    run = Run(checkpoints, until, 1000, progress=ProgressLine(io.StringIO()))
    loss = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, 64)
    trainer = Trainer(model, loss, optimizer, _batches(step), run, step)
    losses = [sum(side.total.item() for side in trainer.train_one_batch()) for _ in range(until - step)]
    trainer.save()
    return model, losses


@pytest.mark.slow
def test_resuming_is_exact(tmp_path):
    """On a CPU, to the bit: losses, weights and what will be dropped next."""
    whole, losses = _train(tmp_path / "whole", 6)
    _, first = _train(tmp_path / "parts", 2)
    torch.rand(7)
    resumed, second = _train(tmp_path / "parts", 6)
    assert first + second == losses
    states = [dict(model.state_dict()) for model in (whole, resumed)]
    assert states[0]["encoder.3.draws"] == (5 << 32) + 6
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_swap_while_training_drops_nothing():
    model = _model()
    faces = np.random.default_rng(1).random((2, 3, 64, 64), np.float32)
    before = model.encoder[3].draws.item()
    first, again = swap_faces(model, faces, "b"), swap_faces(model, faces, "b")
    assert np.array_equal(first, again) and model.training and model.encoder[3].draws.item() == before
    images = [torch.from_numpy(faces)] * 2
    with torch.no_grad():
        assert not torch.equal(model(images)[0][0], model(images)[0][0])
