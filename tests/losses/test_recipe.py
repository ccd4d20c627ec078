"""The loss that DeepFaceLab trains with: its pieces, and the whole of the recipe, against what its own code gave."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.run.plan import check_masks, loss_collator
from swapfast.batch import Batch, BatchMeta
from swapfast.config import LossConfig, OptimizerConfig, TrainConfig, updated
from swapfast.errors import SwapfastError
from swapfast.faces.masks import needed_masks
from swapfast.losses import LossCollator
from swapfast.losses.masks import blur_outside, blurred, soft_mask
from swapfast.losses.structure import dssim_windows, windowed_dissimilarity
from swapfast.models.registry import plan_model
from swapfast.models.tiny import tiny
from swapfast.optim.optimizer import Optimizer
from swapfast.sources import choose
from swapfast.training.trainer import Trainer

# Sums of up to 33 x 33 products in float32, and a quotient of two small variances: a hundred roundings of 6e-8.
ROUNDING = 1e-5
RECORDED = ("df_64", "df-ud_64", "liae-ud_96", "liae-udtc_64")


def _pictures(array: np.ndarray, device) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).to(device)


@pytest.fixture
def pieces(golden, device):
    path = golden.folder / "dfl" / "pieces.npz"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.golden
@pytest.mark.parametrize("window", [1, 2, 5, 8, 11, 22])
def test_dssim_of_each_window(window, pieces, device, within):
    """Recorded by channel; an even window is centred between pixels."""
    a, b = (_pictures(pieces[name], device) for name in "ab")
    expected = torch.from_numpy(pieces[f"dssim_{window}"]).mean(1)
    within("dssim", (windowed_dissimilarity(a, b, [window]).cpu() - expected).abs().max(), ROUNDING)


@pytest.mark.golden
@pytest.mark.parametrize("sigma", ["0.5", "0.75", "1.0", "2.0", "3.0", "4.0", "8.0"])
def test_blur_of_each_sigma(sigma, pieces, device, within):
    mask = _pictures(pieces["mask"], device)
    expected = _pictures(pieces[f"blur_{sigma}"], device)
    within("blur", (blurred(mask, float(sigma)) - expected).abs().max(), ROUNDING)


@pytest.mark.golden
def test_blur_outside_the_face(pieces, device, within):
    target, mask = (_pictures(pieces[name], device) for name in ("target", "mask"))
    made = blur_outside(target, mask)
    within("blur out", (made - _pictures(pieces["blur_out_mask"], device)).abs().max(), ROUNDING)
    assert torch.equal(blur_outside(target, torch.ones_like(mask)), target), "nothing is outside"


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("name", RECORDED)
def test_the_presets_loss_is_deepfacelabs(name, golden, device, within):
    """Its own pictures in and out, the settings as a person gets them. A is its dst, B its src."""
    path = golden.folder / "dfl" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    family, _, size = name.partition("_")
    config = choose({"run.recipe": "saehd", "model.name": family, "model.input_size": int(size)}).config
    with torch.device("meta"):
        model = plan_model(config.model, config.loss.learn_mask)
    loss = loss_collator(config, model).to(device)
    with np.load(path) as file:
        for side in ("dst", "src"):
            mask = _pictures(file[f"mask_{side}"], device)
            made = [_pictures(file[f"{side}_{side}{kind}"], device) for kind in ("", "_mask")]
            result = loss([_pictures(file[f"target_{side}"], device)], made, BatchMeta([mask]))
            assert result.mask is not None
            per_face = torch.stack([*result.weighted[0].values(), result.mask]).sum(0).cpu()
            within(f"loss {side} of about 5", (per_face - torch.from_numpy(file[f"loss_{side}"])).abs().max(), 1e-4)


def test_windows_grow_with_the_picture_and_are_two_from_256_px_on():
    assert [dssim_windows(edge) for edge in (64, 96, 128, 255, 256, 512)] == [
        (5,),
        (8,),
        (11,),
        (21,),
        (22, 11),
        (44, 22),
    ]
    a, b = _random(1, 3, 256, 256), _random(1, 3, 256, 256, seed=2)
    each = [windowed_dissimilarity(a, b, [window]) for window in (22, 11)]
    torch.testing.assert_close(windowed_dissimilarity(a, b), sum(each) / 2)


@pytest.mark.parametrize("window", [4, 5])
def test_dssim_and_its_gradient_are_the_formulas(window, device, within):
    """Written with convolutions in float64, which autograd derives."""
    true, made = (_random(2, 3, 24, 20, seed=seed).double().to(device) for seed in (1, 2))
    offsets = torch.arange(window, dtype=torch.float64, device=device) - (window - 1) / 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line /= line.sum()
    kernel = torch.outer(line, line).expand(3, 1, window, window)

    def mean(images):
        return F.conv2d(images, kernel, groups=3)

    def formula(a, b):
        products = 2 * mean(a) * mean(b)
        squares = mean(a).square() + mean(b).square()
        contrast = (2 * mean(a * b) - products + 9e-4) / (mean(a * a + b * b) - squares + 9e-4)
        return (1 - ((products + 1e-4) / (squares + 1e-4) * contrast).mean((1, 2, 3))) / 2

    results = []
    for function in (lambda a, b: windowed_dissimilarity(a, b, [window]), formula):
        leaf = made.clone().requires_grad_()
        value = function(true, leaf)
        (value * torch.tensor([1.0, 3.0], device=device)).sum().backward()
        results.append((value.detach(), leaf.grad))
    for what, one, other in zip(("value", "gradient"), *results, strict=True):
        within(what, (one - other).abs().max(), 1e-12)


def test_a_soft_mask_covers_the_face_and_a_rim():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 1
    soft = soft_mask(mask)
    assert soft[..., 22:42, 22:42].min() == 1 and 0 < soft[..., 32, 18] < 1 and soft[..., 32, 10] == 0
    assert soft_mask(torch.ones(1, 1, 64, 64))[..., 8:56, 8:56].min() == 1


def test_the_mask_covers_pictures_or_their_loss():
    true, made, mask = _random(2, 3, 32, 32), _random(2, 3, 32, 32, seed=2), _random(2, 1, 32, 32, seed=3)

    def value(**options):
        loss = LossCollator(["mse"], [1.0], "bgr", True, 1, 1, 32, **options)
        return loss([true], [made], BatchMeta([mask])).unweighted[0]["mse"]

    difference = (true - made).square()
    torch.testing.assert_close(value(), (difference * mask).mean((1, 2, 3)))
    torch.testing.assert_close(value(soft=True), (difference * soft_mask(mask).square()).mean((1, 2, 3)))


def test_eyes_and_mouth_have_a_term_of_their_own():
    """In the picture as the model is to make it, whatever the face mask covers."""
    true, made = _random(2, 3, 32, 32), _random(2, 3, 32, 32, seed=2)
    eye, mouth = torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    eye[..., 4:8, :], mouth[..., 6:20, 8:24] = 1, 0.5
    loss = LossCollator(["mae"], [1.0], "bgr", False, 1, 1, 32, eye_mouth_priority=300.0)
    result = loss([true], [made], BatchMeta(None, [eye], [mouth]))
    expected = ((true - made).abs() * torch.maximum(eye, mouth)).mean((1, 2, 3))
    torch.testing.assert_close(result.unweighted[0]["eye_mouth"], expected)
    torch.testing.assert_close(result.weighted[0]["eye_mouth"], 300 * expected)
    with pytest.raises(SwapfastError, match="the loss needs a mask of eyes and mouth"):
        loss([true], [made], BatchMeta())


def test_a_learned_mask_has_its_weight():
    mask, made = _random(2, 1, 32, 32), _random(2, 1, 32, 32, seed=2)
    face = _random(2, 3, 32, 32, seed=3)
    loss = LossCollator(["mse"], [1.0], "bgr", False, 1, 1, 32, "mse", mask_weight=10.0)
    result = loss([face], [face, made], BatchMeta([mask]))
    torch.testing.assert_close(result.mask, 10 * (mask - made).square().mean((1, 2, 3)))
    assert float(result.total) == pytest.approx(float(result.mask.mean()))


def test_masks_are_made_where_a_piece_needs_them():
    bare = {"loss.penalized_mask_loss": False}
    assert needed_masks(updated(TrainConfig(), bare)) == ()
    assert needed_masks(updated(TrainConfig(), {**bare, "loss.blur_out_mask": True})) == ("face",)
    assert needed_masks(updated(TrainConfig(), {**bare, "loss.eye_mouth_priority": 1.0})) == ("eye", "mouth")
    config = choose({"run.recipe": "saehd"}).config
    assert needed_masks(config) == ("face",)


def test_a_multiplier_needs_the_penalized_mask_though_the_priority_brings_its_mask():
    config = updated(TrainConfig(), {"loss.penalized_mask_loss": False, "loss.eye_mouth_priority": 1.0})
    with torch.device("meta"):
        model = plan_model(config.model, False)
    loss = loss_collator(config, model)
    assert (loss.eye_multiplier, loss.mouth_multiplier, loss.eye_mouth_priority) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss.soft_mask": True, "loss.penalized_mask_loss": False}, "--soft-mask: has no effect with --no-penalized"),
        ({"loss.soft_mask": True, "mask.mask_type": "none"}, "--soft-mask: has no effect with --no-penalized"),
        (
            {"loss.blur_out_mask": True, "mask.mask_type": "none"},
            "--blur-out-mask: has no effect with --mask-type none",
        ),
        ({"loss.eye_mouth_priority": 9.0, "mask.mask_type": "none"}, "--eye-mouth-priority: has no effect with"),
    ],
)
def test_a_piece_without_its_mask_is_refused(changes, said):
    with pytest.raises(SwapfastError, match=f"^{said}"):
        check_masks(choose(changes).config, changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dssim_window": 513}, r"--dssim-window 513: must lie within 0 and 512"),
        ({"eye_mouth_priority": -1.0}, r"--eye-mouth-priority -1.0: must lie within 0.0 and 1000.0"),
        ({"mask_loss_weight": 1001.0}, r"--mask-loss-weight 1001.0: must lie within"),
        ({"reduction": "total"}, r"unknown --loss-reduction 'total'.*Known: mean, sum"),
        ({"eye_mouth_priority": math.nan}, r"--eye-mouth-priority nan: expected a finite number"),
    ],
)
def test_a_wrong_value_is_refused(changes, said):
    with pytest.raises(SwapfastError, match=f"^{said}"):
        LossConfig(**changes)


def test_a_window_larger_than_an_output_is_refused_before_the_first_step():
    with pytest.raises(SwapfastError, match=r"^loss dssim: an output of 64 px is smaller than 65 px"):
        LossCollator(["dssim"], [1.0], "bgr", False, 1, 1, 64, dssim_window=65)


@pytest.mark.slow
@pytest.mark.parametrize("faces", [2, 5])
def test_the_sum_has_the_gradient_of_that_many_means(faces, device):
    """And what is logged is the mean either way."""
    norms, totals = [], []
    for sums in (False, True):
        model = tiny().initialise(5).to(device)
        loss = LossCollator(["dssim"], [1.0], "bgr", False, 1, 1, 64, sums=sums)
        sides = _random(faces, 2, 3, 64, 64).to(device)
        batch = Batch([sides[:, 0], sides[:, 1]], [sides], BatchMeta(), 0)
        trainer = Trainer(model, loss, Optimizer(model, OptimizerConfig()), [batch])
        losses = trainer.train_one_batch()
        norms.append(float(trainer.optimizer.report["gradient/norm"]))
        totals.append([float(side.total) for side in losses])
    assert norms[1] == pytest.approx(faces * norms[0], rel=1e-4) and norms[0] > 0
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
