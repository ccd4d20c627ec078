"""The statistics of each side: what is normalised by what, what a swap uses, and that plain models stay the same."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from swapfast.batch import SIDES, Batch, BatchMeta
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.config import ModelConfig, OptimizerConfig
from swapfast.losses import LossCollator
from swapfast.models.registry import build_model
from swapfast.models.side_statistics import (
    COVARIATES,
    EPSILON,
    MOMENTUM,
    Rows,
    SideStatistics,
    with_mean,
)
from swapfast.optim.optimizer import Optimizer
from swapfast.training.code_statistics import (
    COLOR_DIRECTIONS,
    FACES_AT_ONCE,
    CodeStatistics,
    OwnColorFaces,
    SampleFaces,
    main_directions,
)
from swapfast.training.progress import ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.toy import SIZE, toy

SMALL = {"input_size": 64, "ae_dims": 16, "e_dims": 8, "d_dims": 8}
# Sums of at most 2,000 float32 values, each rounded to 6e-8 of its size, and a root of their difference: with values
# of size 10 around a deviation of 1 that is 100 times 1e-7; ten times that.
ROUNDING = 1e-4
OWN_ROWS = [Rows(6, "a", "a"), Rows(10, "b", "b")]


def _features(seed: int, faces: int = 16, flat: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (faces, 5) if flat else (faces, 5, 3, 4)
    return (
        3 + 2 * torch.randn(shape, generator=generator) + torch.arange(float(faces)).view(-1, *[1] * (len(shape) - 1))
    )


def _own_statistics(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = values.double().transpose(0, 1).flatten(1)
    return wide.mean(1), wide.var(1, correction=0)


@pytest.mark.parametrize("flat", [False, True])
def test_each_side_is_normalised_by_its_own_batch(flat, within):
    layer = SideStatistics(5, normalises=True, is_flat=flat)
    features = _features(1, flat=flat).requires_grad_()
    result = layer(features, OWN_ROWS)
    expected = []
    wide = features.detach().double().requires_grad_()
    for values in wide.split([6, 10]):
        mean, variance = _own_statistics(values)
        shape = (1, 5) if flat else (1, 5, 1, 1)
        expected.append((values - mean.view(shape)) * (variance.view(shape) + EPSILON).rsqrt())
    expected = torch.cat(expected)
    within("normalised", (result - expected).abs().max().item(), ROUNDING)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    (result * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    within("gradient", (features.grad - wide.grad).abs().max().item(), ROUNDING)


def test_running_moments_are_the_mean_of_the_first_steps_and_forget_later(within):
    layer = SideStatistics(5, normalises=True)
    batches = [_features(seed) for seed in range(3)]
    for features in batches:
        layer(features, OWN_ROWS)
        layer.update()
    for side, part in enumerate((slice(0, 6), slice(6, 16))):
        values = torch.stack([features[part].double().mean((0, 2, 3)) for features in batches]).mean(0)
        squares = torch.stack([features[part].double().square().mean((0, 2, 3)) for features in batches]).mean(0)
        error = (layer.moments[side] - torch.stack([values, squares])).abs().max().item()
        within(f"moments of side {SIDES[side]}", error, ROUNDING * 100)  # squares are 100 times as large
    before = layer.moments.clone()
    layer.steps.fill_(1000)
    layer(batches[0], OWN_ROWS)
    layer.update()
    mean = batches[0][:6].mean((0, 2, 3))
    torch.testing.assert_close(layer.moments[0, 0], before[0, 0] + MOMENTUM * (mean - before[0, 0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("normalises", [False, True])
def test_statistics_of_a_step_in_parts_are_those_of_the_whole(normalises):
    whole, parts = SideStatistics(5, normalises), SideStatistics(5, normalises)
    features = _features(1)
    whole(features, OWN_ROWS)
    for of_a, of_b in ((range(2), range(6, 10)), (range(2, 6), range(10, 16))):
        parts(features[[*of_a, *of_b]], [Rows(len(of_a), "a", "a"), Rows(len(of_b), "b", "b")])
    whole.update()
    parts.update()
    torch.testing.assert_close(parts.moments, whole.moments, rtol=1e-5, atol=0)  # sums in another order
    assert parts.steps.tolist() == [1, 1] and not parts.sums.any()


def test_a_broken_batch_leaves_the_statistics_as_they_were():
    layer = SideStatistics(5, normalises=True)
    layer(_features(1), OWN_ROWS)
    layer.update()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    broken = _features(2)
    broken[0, 0, 0, 0] = float("nan")  # of side a
    layer(broken, OWN_ROWS)
    layer.update()
    assert torch.equal(layer.moments[0], before["moments"][0]) and layer.steps.tolist() == [1, 2]
    assert layer.moments.isfinite().all()


def _seen(kind: str, **options) -> torch.nn.Module:
    """A model that has been shown dark faces of A and bright ones of B, in evaluation mode."""
    model = build_model(ModelConfig(code=kind, **options), False, 1).train()
    generator = torch.Generator().manual_seed(1)
    edge = model.input_size
    for _ in range(2):
        faces = torch.rand(2, 8, 3, edge, edge, generator=generator)
        faces[0, :, 0] *= 0.2
        model([faces[0], faces[1]])
        model.update_statistics()
    return model.eval()


def _dark(edge: int = 64) -> torch.Tensor:
    faces = torch.rand(8, 3, edge, edge, generator=torch.Generator().manual_seed(9))
    faces[:, 0] *= 0.2
    return faces


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"name": "tiny"}, {"name": "df-ut", **SMALL}], ids=["tiny", "df-ut"])
def test_a_swap_uses_the_statistics_of_the_side_that_is_shown(options):
    model = _seen("encoder", **options)
    faces = _dark()
    own, other = model.code(faces, "b", of="a"), model.code(faces, "b", of="b")
    assert torch.equal(model.code(faces, "b"), own) and not torch.equal(own, other)
    assert torch.equal(own, model.code(faces, "a", of="a")), "the code of a picture does not depend on what it becomes"
    last = list(model.statistics.values())[-1]
    inputs = []
    hook = last.register_forward_hook(lambda _, arguments, result: inputs.append((arguments[0], result)))
    with torch.no_grad():
        model.code(faces, "b", of="a")
    hook.remove()
    (given, result), moments = inputs[0], last.moments[0].double()
    expected = (given - moments[0]) / (moments[1] - moments[0] ** 2 + EPSILON).sqrt()
    torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-5)


def test_every_layer_up_to_the_code_is_normalised():
    names = {
        kind: list(build_model(ModelConfig(name="tiny", code=kind), False, 1).statistics)
        for kind in ("encoder", "bottleneck", "plain")
    }
    assert names["encoder"] == [f"encoder_{layer}" for layer in (0, 1, 2, 3, 5)]
    assert names["bottleneck"] == names["plain"] == ["encoder_5"]
    liae = build_model(ModelConfig(name="liae-ut", code="encoder", **SMALL), False, 1)
    assert [name for name in liae.statistics if "inters" in name] == ["inters_both_dense1", "inters_a_dense1"]
    assert "encoder_res5" in liae.statistics and "encoder_down1" in liae.statistics
    df = build_model(ModelConfig(name="df-u", code="encoder", **SMALL), False, 1)
    assert list(df.statistics)[-1] == "encoder_inter_dense1" and "encoder_features_down1" in df.statistics


@pytest.mark.slow
def test_liae_codes_a_face_for_side_a_by_the_statistics_of_a():
    """Nothing else was ever seen by the half that only side A has."""
    model = _seen("encoder", name="liae-u", **SMALL)
    faces = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    layer = model.statistics["inters_a_dense1"]
    assert layer.steps.tolist() == [2, 0]
    rows = []
    hook = layer.register_forward_hook(lambda _, arguments, result: rows.extend(arguments[1]))
    code = model.code(faces, "a", of="b")
    hook.remove()
    assert rows == [Rows(8, "a", "a")] and code.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"name": "tiny"}, {"name": "liae-u", **SMALL}], ids=["tiny", "liae-u"])
def test_a_swap_of_a_plain_model_exchanges_the_mean_codes(options):
    """What a model without statistics makes of the same features, moved by the difference of the sides' means."""
    model = _seen("plain", **options)
    (layer,) = model.statistics.values()
    faces = _dark()
    with torch.no_grad():
        own = model.encode(faces, [Rows(8, "a", "a")])
        exchanged = model.code(faces, "b")
        model.exchange_mean_codes(False)
        kept = model.code(faces, "b")
        assert torch.equal(kept, model.side_code(own, Rows(8, "b", "b")))
    assert not torch.equal(exchanged, kept)
    model.exchange_mean_codes(True)
    scale, offset = layer.scale_and_offset("a", "b")
    assert torch.equal(offset, layer.moments[1, 0] - layer.moments[0, 0]) and (scale == 1).all()
    assert not layer.scale_and_offset("b", "b")[1].any()


def test_a_model_that_never_saw_a_side_exchanges_nothing():
    model = build_model(ModelConfig(name="tiny"), False, 1).eval()
    faces = _dark()
    assert torch.equal(model.code(faces, "b", of="a"), model.code(faces, "b", of="b"))


def _batches(step: int):
    while True:
        generator = torch.Generator().manual_seed(step)
        faces = torch.rand(2, 4, 3, SIZE, SIZE, generator=generator)
        masks = torch.ones(4, 2, 1, SIZE, SIZE)
        yield Batch(list(faces), [faces.transpose(0, 1)], BatchMeta([masks]), step)
        step += 1


def _trained(model, folder, until: int, accumulation: int = 1):
    """Train up to an iteration, from the newest checkpoint on where there is one."""
    checkpoints = CheckpointFolder(folder)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-3, gradient_accumulation=accumulation))
    loaded, step = checkpoints.load(), 0
    if loaded is not None:
        step = loaded[0].step
        model.load_state_dict(loaded[0].tensors["model"])
        optimizer.load_state_dict(loaded[0].tensors["optimizer"])
    run = Run(checkpoints, until, 1000, progress=ProgressLine(io.StringIO()))
    loss = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, SIZE)
    Trainer(model, loss, optimizer, _batches(step), run, step).train()
    return dict(model.state_dict())


def test_statistics_change_nothing_in_the_training_of_a_plain_model(tmp_path):
    without = _trained(toy().initialise(1), tmp_path / "without", 3)
    kept = _trained(toy().with_code("plain").initialise(1), tmp_path / "kept", 3)
    assert all(torch.equal(kept[name], weight) for name, weight in without.items())
    assert kept["statistics.encoder_4.steps"].tolist() == [3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "plain"])
def test_resuming_in_the_middle_of_a_step_is_exact(kind, tmp_path):
    def model():
        return toy().with_code(kind).initialise(1)

    whole = _trained(model(), tmp_path / "whole", 7, accumulation=2)
    _trained(model(), tmp_path / "parts", 3, accumulation=2)
    resumed = _trained(model(), tmp_path / "parts", 7, accumulation=2)
    assert whole["statistics.encoder_4.steps"].tolist() == [3, 3] and whole["statistics.encoder_4.values"].all()
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_weights_without_statistics_are_loaded():
    model = toy().with_code("encoder").initialise(1)
    model.load_state_dict(toy().initialise(2).state_dict())
    assert torch.equal(model.encoder[0][0].weight, toy().initialise(2).encoder[0][0].weight)
    assert not model.statistics["encoder_0"].steps.any()


def test_half_precision_keeps_statistics_in_float32():
    model = toy().with_code("encoder").initialise(1)
    faces = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        model([faces, faces])
        model.update_statistics()
        half = model.eval().swap(faces, "b")[0]
    exact = model.swap(faces, "b")[0]
    assert model.statistics["encoder_0"].moments.dtype == torch.float32
    # bfloat16 keeps 8 bits: nine layers part the pictures by a few of 1/256.
    assert np.abs((half.float() - exact).detach().numpy()).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"name": "tiny"}, {"name": "liae-ud", **SMALL}], ids=["tiny", "liae-ud"])
def test_faces_come_back_from_their_swap(options, within):
    """Each side's own face, of a picture that its side's decoder never made; no gradient goes through the swap."""
    model = build_model(ModelConfig(code="encoder", **options), False, 1).train()
    faces = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    own, cycled = model([*faces]), model([*faces], cycles=True)
    assert len(cycled) == 4 and all(torch.equal(cycled[side][0], own[side][0]) for side in (0, 1))
    seen = {name: value.clone() for name, value in model.state_dict().items() if name.endswith(".values")}
    assert all(torch.equal(value[0], value[1]) or "inters_a" in name for name, value in seen.items())
    model([*faces])
    again = model.state_dict()
    assert all(torch.equal(again[name], 1.5 * value) for name, value in seen.items()), "swaps are not counted"
    rows = [Rows(4, "a", "a"), Rows(4, "b", "b")]
    features = model.encode(torch.cat([*faces]), rows).split(4)
    there = [model.side_code(part, Rows(4, shown, wanted)) for part, shown, wanted in zip(features, "ab", "ba")]
    swaps = [model.decoder(side)(code)[0].detach() for side, code in zip("ba", there)]
    back = [Rows(4, "b", "a"), Rows(4, "a", "b")]
    codes = model.encode(torch.cat(swaps), back).split(4)
    for number, (part, code) in enumerate(zip(back, codes)):
        expected = model.decoder(part.wanted)(model.side_code(code, part))[0]
        within(f"back to {part.wanted}", (cycled[2 + number][0] - expected).abs().max().item(), ROUNDING)
    model.zero_grad()
    (cycled[2][0].sum() + 0 * cycled[3][0].sum()).backward()
    other = [p.grad for name, p in model.named_parameters() if name.startswith("decoders.b")]
    assert all(gradient is None or not gradient.any() for gradient in other)


def test_the_loss_of_the_way_there_and_back_is_added():
    """Its weight times the same functions."""
    losses = {}
    for weight in (0.0, 0.5):
        model = toy().with_code("encoder").initialise(1)
        collator = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, SIZE, cycle_weight=weight)
        trainer = Trainer(model, collator, Optimizer(model, OptimizerConfig(learning_rate=1e-3)), _batches(0))
        losses[weight] = trainer.train_one_batch()
    plain, cycled = losses[0.0], losses[0.5]
    for side in (0, 1):
        own, added = plain[side].weighted[0]["mae"], cycled[side].weighted[0]["cycle"]
        assert torch.equal(cycled[side].weighted[0]["mae"], own) and "cycle" not in plain[side].weighted[0]
        assert torch.equal(added, 0.5 * cycled[side].unweighted[0]["cycle"]) and (added > 0).all()
        torch.testing.assert_close(cycled[side].total, own.mean() + added.mean())


# --- poses ------------------------------------------------------------------------------------------------------------


def _looking(side: int, faces: int, seed: int, yaws: Sequence[float] = (1.0, 1.0)) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariates of faces of a side, which look another way than the other's on average, and features of theirs.

    Features (faces, 5) are the person's own, moved by SLOPES, and some noise. yaws: of the sides, deviations.
    """
    generator = torch.Generator().manual_seed(2 * seed + side)
    spread = torch.tensor([yaws[side], 1.0, 1.0])
    covariates = spread * torch.randn(faces, COVARIATES, generator=generator) + POSES[side]
    noise = 0.3 * torch.randn(faces, 5, generator=generator)
    return covariates, PERSON[side] + covariates @ SLOPES + noise


SLOPES = torch.tensor([[1.0, 0.0, 0.5, 0.0, 0.2], [0.0, 2.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
POSES = torch.tensor([[0.0, -1.5, 0.5], [0.0, 1.5, -0.5]])  # of the sides: they look up and down
PERSON = torch.tensor([[1.0, -2.0, 0.0, 3.0, 0.0], [-1.0, 4.0, 1.0, 0.0, 2.0]])


def _trained_on_poses(
    compares: bool, steps: int = 200, yaws: Sequence[float] = (1.0, 1.0), normalises: bool = True
) -> SideStatistics:
    layer = SideStatistics(5, normalises, is_flat=True).train()
    if compares:
        layer.side_means.copy_(POSES)
        layer.side_covariances[:, 0, 0] = torch.tensor(yaws).square() - 1
    for step in range(steps):
        sides = [_looking(side, 16, step, yaws) for side in range(2)]
        rows = [
            Rows(16, name, name, covariates=with_mean(covariates) if compares else None)
            for name, (covariates, _) in zip(SIDES, sides, strict=True)
        ]
        layer(torch.cat([features for _, features in sides]), rows)
        layer.update()
    return layer.eval()


def test_features_are_alike_at_the_same_pose_where_poses_are_compared(within):
    """What is a person's own is gone, and what is the pose's has stayed: both sides are the same where both look."""
    layer = _trained_on_poses(compares=True)
    covariates = torch.tensor([[0.5, 0.3, -0.2]])
    of_a, of_b = (layer(PERSON[side] + covariates @ SLOPES, [Rows(1, name, name)]) for side, name in enumerate(SIDES))
    # The running means are of 50 steps of 16 faces, or about: 0.04 of a deviation, and there are 10 of them; slopes
    # likewise, times 3 between the sides.
    within("the same pose, deviations", (of_a - of_b).abs().max().item(), 4 * (0.04 * 2**0.5 + 3 * 0.04))
    same = _trained_on_poses(compares=False)
    of_a, of_b = (same(PERSON[side] + covariates @ SLOPES, [Rows(1, name, name)]) for side, name in enumerate(SIDES))
    assert (of_a - of_b).abs().max() > 2, "each side's mean is the same code, though one looks up and one down"


def test_mean_codes_are_exchanged_at_the_same_pose_where_poses_are_compared(within):
    """A code of A that looks up becomes the code of B that looks up, and not of B as B looks on average."""
    up = torch.tensor([[0.0, -1.0, 0.0]]) @ SLOPES
    swap = Rows(1, "a", "b")
    layer = _trained_on_poses(compares=True, normalises=False)
    # As of the test above; features have deviations of up to 2.1.
    tolerance = 2.1 * 4 * (0.04 * 2**0.5 + 3 * 0.04)
    within("the code of B", (layer(PERSON[[0]] + up, [swap]) - PERSON[[1]] - up).abs().max().item(), tolerance)
    means = _trained_on_poses(compares=False, normalises=False)
    turned = means(PERSON[[0]] + up, [swap]) - PERSON[[1]] - up
    assert turned[0, 1] > 5, "3 deviations of pitch by a slope of 2"
    assert torch.equal(layer(PERSON[[0]] + up, [Rows(1, "a", "a")]), PERSON[[0]] + up), "its own face as it is"


def test_a_person_who_turns_more_has_the_same_code_at_the_same_turn(within):
    """Variances of 0.04 and 1.96: without it A's turns of a fifth would be the code of B's whole ones."""
    yaws, turn = (0.2, 1.4), torch.tensor([0.3, 0.0, 0.0]) @ SLOPES
    moved = {}
    for compares in (True, False):
        layer = _trained_on_poses(compares, 400, yaws)
        moved[compares] = [
            (layer(PERSON[[side]] + turn, [Rows(1, name, name)]) - layer(PERSON[[side]], [Rows(1, name, name)]))[0, 0]
            for side, name in enumerate(SIDES)
        ]
    # The slopes of about 50 steps of 16 faces are known to 4 %, and what is left of A's variance follows their square.
    within("by the same turn, of it", abs(moved[True][0] / moved[True][1] - 1).item(), 0.3)
    assert moved[False][0] / moved[False][1] > 3


def test_slopes_are_those_of_a_regression_within_the_sides(within):
    layer = SideStatistics(5, normalises=True, is_flat=True).train()
    sides = [_looking(side, faces, 7) for side, faces in enumerate((6, 10))]
    rows = [
        Rows(len(covariates), name, name, covariates=with_mean(covariates))
        for name, (covariates, _) in zip(SIDES, sides, strict=True)
    ]
    layer(torch.cat([features for _, features in sides]), rows)
    layer.update()
    expected = torch.zeros(COVARIATES, 5, dtype=torch.float64)
    for covariates, features in sides:
        wide, about = features.double(), covariates.double()
        normal = (wide - wide.mean(0)) * (wide.var(0, correction=0) + EPSILON).rsqrt()
        expected += (about - about.mean(0)).T @ normal
    # Sums of 16 products of float32, of size 3 at most.
    within("slopes", (layer.slopes - expected / (5 + 9)).abs().max().item(), 1e-5)
    assert not layer.products.any() and not layer.freedom


def test_a_batch_is_put_where_its_own_faces_look():
    """Another batch, which happens to look up, is not taken for one that looks straight on."""
    layer = _trained_on_poses(compares=True).train()
    covariates, features = _looking(0, 64, 5)
    up = covariates[:, 1] < POSES[0, 1]
    rows = [Rows(int(up.sum()), "a", "a", covariates=with_mean(covariates[up]))]
    normal = layer(features[up], rows)
    torch.testing.assert_close(normal.mean(0), covariates[up].mean(0) @ layer.slopes, rtol=0, atol=1e-5)
    swaps = layer(features[up], [rows[0]._replace(shown="b", are_swaps=True)])
    assert torch.equal(swaps, normal), "a swap looks where its face does, whoever it shows"


def test_the_slopes_of_a_step_in_parts_are_about_those_of_the_whole():
    """Each part has its own mean, so that they are no more than alike; both count the faces that they had."""
    parts = SideStatistics(5, normalises=True, is_flat=True).train()
    covariates, features = _looking(0, 4000, 3)
    for part in range(2):
        of_part = slice(2000 * part, 2000 * part + 2000)
        rows = [Rows(2000, "a", "a", covariates=with_mean(covariates[of_part]))]
        parts(features[of_part], rows)
    assert parts.freedom == 2 * 1999
    parts.update()
    whole = SideStatistics(5, normalises=True, is_flat=True).train()
    whole(features, [Rows(4000, "a", "a", covariates=with_mean(covariates))])
    whole.update()
    torch.testing.assert_close(parts.slopes, whole.slopes, rtol=0, atol=5 / 4000**0.5)


def test_what_is_broken_moves_no_slopes():
    layer = _trained_on_poses(compares=True, steps=2).train()
    before = layer.slopes.clone()
    covariates, features = _looking(0, 8, 9)
    features[3, 2] = float("inf")
    layer(features, [Rows(8, "a", "a", covariates=with_mean(covariates))])
    layer.update()
    assert torch.equal(layer.slopes, before) and layer.slopes.isfinite().all()


def test_statistics_saved_before_poses_were_compared_are_taken():
    layer = _trained_on_poses(compares=True, steps=2)
    old = {name: value for name, value in layer.state_dict().items() if name in ("moments", "steps", "sums", "values")}
    fresh = SideStatistics(5, normalises=True, is_flat=True)
    fresh.load_state_dict(old)
    assert torch.equal(fresh.moments, layer.moments) and not fresh.slopes.any() and not fresh.side_means.any()


def test_poses_are_compared_in_single_precision_under_autocast():
    """In bfloat16 slopes and offsets would be off by 4e-3 of their size."""
    covariates, features = _looking(0, 16, 4)
    layers = [_trained_on_poses(compares=True, steps=3) for _ in range(2)]
    layers[0].slopes.mul_(1 + 1 / 3)
    layers[1].load_state_dict(layers[0].state_dict())
    results = []
    for layer, autocast in zip(layers, (False, True), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            of_swap = layer.eval()(features, [Rows(16, "a", "b")])
            rows = [Rows(16, "a", "a", covariates=with_mean(covariates))]
            results.append((of_swap, layer.train()(features, rows), layer.products))
    for single, half in zip(*results, strict=True):
        assert torch.equal(single, half)


def _recolored(side: int, faces: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of a side's faces are in their own colours, a quarter, and features of theirs, (faces, 5).

    The others are moved as colours move dark skin and pale: A's down, by 1 on average, and B's up.
    """
    generator = torch.Generator().manual_seed(2 * seed + side)
    uncolored = (torch.rand(faces, generator=generator) < 0.25).float()
    move = torch.randn(faces, generator=generator) + (1.0 if side else -1.0)
    noise = 0.3 * torch.randn(faces, 5, generator=generator)
    return uncolored, PERSON[side] + ((1 - uncolored) * move)[:, None] + noise


def _trained_on_colors(sees: bool, steps: int = 300) -> SideStatistics:
    layer = SideStatistics(5, normalises=True, is_flat=True)
    for step in range(steps):
        sides = [_recolored(side, 16, step) for side in range(2)]
        rows = [Rows(16, name, name) for name in SIDES]
        layer.train()(torch.cat([features for _, features in sides]), rows)
        layer.update()
    layer.eval()
    for number, side in enumerate(SIDES if sees else ()):
        own, features = _recolored(number, 400, steps)
        codes = layer(features[own > 0], [Rows(int(own.sum()), side, side)])
        layer.put_uncolored(side, codes.mean(0), torch.zeros(COVARIATES), len(codes), torch.eye(5).double())
    return layer


def test_a_face_in_its_own_colors_becomes_one_of_b_in_hers(within):
    """Not of B as her augmented faces are on average, lighter or darker than she is."""
    swap, own_b = Rows(1, "a", "b"), Rows(1, "b", "b")
    layer = _trained_on_colors(sees=True)
    apart = layer(PERSON[[0]], [swap]) - layer(PERSON[[1]], [own_b])
    # About 100 faces a side, of a deviation of 0.3, and the running mean of 50 batches of 16, of 1.
    within("the code of B, deviations", apart.abs().max().item(), 4 * (0.03 + 0.04) * 2**0.5)
    as_usual = _trained_on_colors(sees=False)
    apart = as_usual(PERSON[[0]], [swap]) - as_usual(PERSON[[1]], [own_b])
    assert apart.min() < -1 or apart.max() > 1, "three quarters of a move of 1 either way, of deviations of about 1"
    assert apart.abs().min() > 1
    # Its own face, and a swap without the exchange, as they were.
    torch.testing.assert_close(layer(PERSON[[1]], [own_b]), as_usual(PERSON[[1]], [own_b]))
    layer.exchanges = False
    torch.testing.assert_close(layer(PERSON[[0]], [swap]), as_usual(PERSON[[0]], [swap]))


def test_where_faces_in_their_own_colors_lie_replaces_what_was_known_and_is_of_colors_alone(within):
    layer = SideStatistics(5, normalises=True, is_flat=True).eval()
    layer.slopes.copy_(SLOPES)
    first, second = (_features(seed, flat=True).mean(0) for seed in range(2))
    directions = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(3)).double())[0].T
    layer.put_uncolored("a", first, POSES[1], 7, directions)
    layer.put_uncolored("a", second, POSES[0], 16, directions)
    at_usual_pose = second.double() - (POSES[0, :, None].double() * SLOPES.double()).sum(0)
    expected = sum((direction @ at_usual_pose) * direction for direction in directions)
    found = layer.uncolored_sums[0] / layer.uncolored_faces[0]
    within("mean", (found - expected).abs().max().item(), ROUNDING * 100)  # of numbers up to 100
    assert layer.uncolored_faces.tolist() == [16, 0] and not layer.uncolored_sums[1].any()
    assert torch.equal(layer.scale_and_offset("a", "b")[1], layer.scale_and_offset("a", "a")[1]), "B was not seen yet"
    broken = first.clone()
    broken[0] = float("nan")
    layer.put_uncolored("a", broken, POSES[0], 3, directions)
    assert torch.equal(layer.uncolored_sums[0] / layer.uncolored_faces[0], found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "bottleneck", "plain"])
@pytest.mark.parametrize("name", ["df-ut", "liae-ut"])
def test_only_the_code_itself_is_moved_by_colors(name, kind):
    model = _seen(kind, name=name, **SMALL)
    code = model.statistics_behind(model.code_layer())
    assert [layer for layer in model.statistics.values() if layer.is_code] == [code]
    faces, before = _dark(), model.swap(_dark(), "b")[0]
    for layer in model.statistics.values():
        layer.uncolored_sums[1] += 5
        layer.uncolored_faces += 10
    moved = model.swap(faces, "b")[0]
    assert (moved - before).abs().max() > 1e-3
    code.uncolored_faces.zero_()
    assert torch.equal(model.swap(faces, "b")[0], before), "nothing is known of one side"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "plain"])
@pytest.mark.parametrize("name", ["df-ut", "liae-ut"])
def test_a_finished_model_sees_faces_as_training_does_once_statistics_are_measured(name, kind, within):
    """Of one batch both are the same; and as far as colours go a swap of A's mean face in her own is B's in hers."""
    model = _seen(kind, name=name, **SMALL).train()
    model.decoders.eval()  # frozen
    generator = torch.Generator().manual_seed(1)
    levels = torch.rand(2, FACES_AT_ONCE, 3, 64, 64, generator=generator).mul(255).byte()
    levels[0] //= 2
    own = torch.rand(2, 40, 3, 64, 64, generator=generator).mul(255).byte()
    weights = torch.rand(2, 40, generator=generator).double()
    faces = [SampleFaces(of_side.numpy(), None) for of_side in levels]
    own_colors = [
        OwnColorFaces(of_side.numpy(), count.numpy(), np.zeros(COVARIATES), of_side[:36].numpy() // 3)
        for of_side, count in zip(own, weights, strict=True)
    ]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    statistics = CodeStatistics([model], faces, own_colors)
    statistics.measure()
    assert model.training and not model.decoders.training
    measured = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {key.rpartition(".")[2] for key, value in measured.items() if not torch.equal(value, before[key])}
    of_colors = {"uncolored_sums", "uncolored_faces"} if kind == "encoder" else set()
    assert changed == {"moments"} | of_colors, "nothing that is trained"
    images = [of_side.float() / 255 for of_side in levels]
    with torch.no_grad():
        as_trained = model(images)
        model.eval()
        for side, of_side, expected in zip(SIDES, images, as_trained, strict=True):
            found = model.swap(of_side, side, of=side)[0]
            # Sums of some thousand products through ten layers, in another order.
            within(f"faces of {side}", (found - expected[0]).abs().max().item(), 1e-4)
    path = model.code_layer()
    assert model.statistics_behind(path).uncolored_faces.tolist() == ([40, 40] if kind == "encoder" else [0, 0])

    def codes(side: int, wanted: str, faces: torch.Tensor) -> torch.Tensor:
        kept, rows = {path: None}, Rows(len(faces), SIDES[side], wanted)
        with torch.no_grad():
            model.side_code(model.encode(faces.float() / 255, [rows], kept), rows, kept)
        return kept[path].double() if kept[path].dim() == 2 else kept[path].double().flatten(2).mean(2)

    def mean_code(side: int, wanted: str) -> torch.Tensor:
        return (weights[side, :, None] * codes(side, wanted, own[side])).sum(0) / weights[side].sum()

    moves = torch.cat([codes(n, name, own[n, :36] // 3) - codes(n, name, own[n, :36]) for n, name in enumerate(SIDES)])
    # Eigenvectors of what they vary by: the program has them of another decomposition.
    directions = torch.linalg.eigh(moves.T @ moves)[1][:, -COLOR_DIRECTIONS:]
    apart = mean_code(0, "b") - mean_code(1, "b")
    before_exchange = mean_code(0, "a") - mean_code(1, "b")
    within("what colours move", (directions.T @ apart).abs().max().item(), 1e-4)
    if kind == "plain":  # whose mean codes, of augmented faces, are exchanged
        before_exchange += codes(1, "b", levels[1]).mean(0) - codes(0, "a", levels[0]).mean(0)
    rest = before_exchange - directions @ (directions.T @ before_exchange)
    within("the rest stays" if kind == "encoder" else "the rest", (apart - rest).abs().max().item(), 1e-4)
    model.load_state_dict(before)
    statistics.measure()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "nothing is done twice"
    statistics.note_change()
    statistics.measure()
    assert all(torch.equal(value, measured[key]) for key, value in model.state_dict().items())
    next(model.encoder.parameters()).data.fill_(float("nan"))
    statistics.note_change()
    statistics.measure()
    kept = {key: value for key, value in model.state_dict().items() if key.startswith("statistics.")}
    assert all(torch.equal(value, measured[key]) for key, value in kept.items()), "broken weights say nothing"


def test_directions_of_nothing_are_none():
    assert main_directions(torch.zeros(8, 5).double(), 3).shape == (0, 5)
    along = torch.tensor([[3.0, 0, 4.0, 0, 0]]).double()
    assert torch.allclose(main_directions(torch.cat([along, -2 * along]), 3).abs(), along / 5)
