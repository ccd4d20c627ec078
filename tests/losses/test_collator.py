"""Masks, multipliers and weights: against faceswap's totals and against the formula written out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from swapfast.batch import BatchMeta
from swapfast.errors import SwapfastError
from swapfast.losses import LOSSES, LossCollator, get_loss
from tests.losses.leaps import leaping_pixels

OWN = sorted(name for name in LOSSES if not name.startswith("lpips"))
ONE_PIXEL = {"mae", "mse", "logcosh", "smooth_loss"}


def _manifest_configs(golden) -> dict:
    return json.loads((golden.folder / "manifest.json").read_text())["files"]["loss_collator.npz"]["params"]["configs"]


def _tensor(array, device):
    return torch.from_numpy(array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)).to(device)


def _image(golden, device, image_name, size):
    """The 32 px pair is not stored: it is the 64 px one averaged 2 x 2 (its per-item losses say so)."""
    pairs = golden("loss_inputs")
    if f"{image_name}_{size}" in pairs.files:
        return _tensor(pairs[f"{image_name}_{size}"], device)
    return torch.nn.functional.avg_pool2d(_tensor(pairs[f"{image_name}_64"], device), 64 // int(size))


def _parts(golden, device, config, output):
    """True and predicted image, masks of face, eyes and mouth of one output."""
    size = config["outputs"][output]
    masks = [_tensor(golden("loss_collator")[f"mask_{name}_{size}"], device) for name in ("face", "eye", "mouth")]
    return _image(golden, device, "true", size), _image(golden, device, "pred", size), *masks


def _run(golden, device, config):
    masks = golden("loss_collator")

    def tensor(array):
        return _tensor(array, device)

    outputs = config["outputs"]
    true = [_image(golden, device, "true", o) for o in outputs]
    pred = [_image(golden, device, "pred", o).requires_grad_() for o in outputs]
    eyes = config["eye_mouth_masks"]
    meta = BatchMeta(
        [tensor(masks[f"mask_face_{o}"]) for o in outputs] if config["use_mask"] else None,
        [tensor(masks[f"mask_eye_{o}"]) for o in outputs] if eyes else None,
        [tensor(masks[f"mask_mouth_{o}"]) for o in outputs] if eyes else None,
    )
    collator = LossCollator(
        config["functions"],
        config["weights"],
        config["color_order"],
        config["use_mask"],
        config["eye_multiplier"],
        config["mouth_multiplier"],
        int(outputs[0]),
        config["learn_mask"],
    )
    learned = [tensor(masks[f"pred_mask_{outputs[-1]}"])] if config["learn_mask"] else []
    return pred, collator(true, pred + learned, meta)


# Functions whose value in the collator's golden file holds a defect of the peer.
MENDED = {"gmsd", "l_inf_norm", "ffl"}
CONFIGS = [
    "default",
    "default_nomask",
    "eye1_mouth1",
    "mask_only_no_eye",
    "nonspatial_linf",
    "four",
    "flip_nomask",
    "multi_learnmask",
    "multi_learnmask_mae",
]


# Five times what rounding leaves of an item's mean: 3.6e-5 of ssim's, most of it the peer's (test_functions), and
# 1.8e-5 of ms_ssim's apart from its leaps. Of all others 6e-7.
ROUNDING = {"ssim": 1.8e-4, "ms_ssim": 1e-4}


def _leap(golden, device, config, output):
    """Return by how much ms_ssim's mean may leap in each item, (N,): by up to 1 a pixel where rounding decides."""
    true, pred, face, eye, mouth = _parts(golden, device, config, output)
    weights = face * (1 + config["eye_multiplier"] * eye) * (1 + config["mouth_multiplier"] * mouth)
    return (leaping_pixels(true, pred) * weights.cpu().numpy()).mean((1, 2, 3))


def test_every_golden_configuration_is_tested(golden):
    assert {*CONFIGS, "duplicate_function"} == set(_manifest_configs(golden))


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("name", CONFIGS)
def test_totals_and_gradients_are_the_peers(golden, device, within, name):
    """Within the rounding of ssim's variances, the peer's and ours (test_functions measures both), and ms_ssim's leaps.

    Where a function of the peer has a defect its part of the total is replaced by what ours should be, from
    ``_expected``, written here without the collator.
    """
    vectors, config = golden("loss_collator"), _manifest_configs(golden)[name]
    pred, loss = _run(golden, device, config)
    weights = {f: w for f, w in zip(config["functions"], config["weights"]) if f != "none"}
    total, leaps = float(vectors[f"total_{name}"]), 0.0
    for output, values in enumerate(loss.unweighted):
        assert list(values) == list(weights)
        for function, value in values.items():
            theirs = vectors[f"unweighted_{name}_out{output}_{function}"].astype(np.float64)
            reference = theirs
            if function in MENDED:
                reference = _expected(golden, device, config, function, output)
                assert np.abs(theirs / reference - 1).max() > 1e-4, "the peer's defect, reproduced"
                total += weights[function] * (reference.mean() - theirs.mean())
            leap = _leap(golden, device, config, output) if function == "ms_ssim" else 0.0
            leaps += weights[function] * np.mean(leap)
            error = ((np.abs(value.detach().cpu().numpy() - reference) - leap) / reference).max()
            within(f"{name} out{output} {function} per item, relative", error, ROUNDING.get(function, 1e-5))
            weighted = loss.weighted[output][function].detach().cpu().numpy()
            np.testing.assert_allclose(weighted, value.detach().cpu().numpy() * weights[function], rtol=1e-6)
    rounding = max(ROUNDING.get(function, 1e-5) for function in weights)
    within(f"{name} total, relative", (abs(loss.total.item() - total) - leaps) / total, rounding)
    if config["learn_mask"]:
        error = np.abs(loss.mask.detach().cpu().numpy() / vectors[f"mask_{name}"] - 1).max()
        within(f"{name} learned mask per item, relative", error, 1e-5)
    grads = torch.autograd.grad(loss.total, pred)
    assert all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in grads)
    for output, grad in enumerate(grads):
        if f"grad_{name}_out{output}" in vectors.files:
            theirs = vectors[f"grad_{name}_out{output}"]
            error = np.abs(grad.cpu().numpy() - theirs).max() / np.abs(theirs).max()
            # Of ssim's gradient rounding leaves 5.1e-5 here and up to 9.3e-5 in ten draws (test_functions).
            within(f"{name} out{output} gradient, relative", error, 5e-4 if "ssim" in weights else 1e-4)


def _expected(golden, device, config, function, output):
    """(N,) float64 values of one function by the manifest's formula."""
    true, pred, face, eye, mouth = (part.double() for part in _parts(golden, device, config, output))
    loss = get_loss(function).function
    if get_loss(function).spatial:
        masked = loss(true, pred) * face * (1 + 3 * eye) * (1 + 2 * mouth)
        return masked.mean((1, 2, 3)).cpu().numpy()
    masked = loss(true * face, pred * face) + 3 * loss(true * eye, pred * eye) + 2 * loss(true * mouth, pred * mouth)
    return masked.cpu().numpy()


@pytest.mark.golden
def test_a_function_named_twice_adds_its_weights(golden, device, within):
    """The peer loses the first weight (total = 0.5 * ssim); the right total is 1.5 * ssim."""
    config = _manifest_configs(golden)["duplicate_function"]
    _, loss = _run(golden, device, config)
    theirs = float(golden("loss_collator")["total_duplicate_function"])
    weight, options = config["weights"][1], sum(config["weights"])
    within("duplicate total, relative", abs(loss.total.item() / (theirs / weight * options) - 1), ROUNDING["ssim"])


def test_masks_and_multipliers_by_the_formula(device):
    generator = torch.Generator().manual_seed(5)
    true, pred = (torch.rand(2, 3, 32, 32, generator=generator).to(device) for _ in range(2))
    face, eye, mouth = (torch.rand(2, 1, 32, 32, generator=generator).to(device) for _ in range(3))
    collator = LossCollator(["mae"], [2.0], "bgr", True, 3, 2, 32)
    loss = collator([true], [pred], BatchMeta([face], [eye], [mouth]))
    expected = (true - pred).abs() * face * (1 + 3 * eye) * (1 + 2 * mouth)
    torch.testing.assert_close(loss.unweighted[0]["mae"], expected.mean((1, 2, 3)))
    torch.testing.assert_close(loss.total, 2 * expected.mean())
    on_cpu = loss.to_cpu()
    assert on_cpu.weighted[0]["mae"].device.type == "cpu" and not on_cpu.total.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_every_function_is_masked(device, name):
    """What lies outside the mask changes nothing, gets no gradient from maps of one pixel, and backward works."""
    generator = torch.Generator().manual_seed(8)
    true, pred = (torch.rand(2, 3, 64, 64, generator=generator).to(device) for _ in range(2))
    face = torch.zeros(2, 1, 64, 64, device=device)
    face[..., 16:48, 16:48] = 1
    eye = torch.zeros_like(face)
    eye[..., 20:28, 20:28] = 1
    pred.requires_grad_()
    loss = LossCollator([name], [1.0], "bgr", True, 3, 1, 64)([true], [pred], BatchMeta([face], [eye], None))
    loss.total.backward()
    assert torch.isfinite(pred.grad).all() and pred.grad[..., 16:48, 16:48].abs().sum() > 0
    if name in ONE_PIXEL or not get_loss(name).spatial:
        assert pred.grad[..., :16, :].abs().max() == 0
        outside = torch.where(face > 0, pred.detach(), 0.5)
        again = LossCollator([name], [1.0], "bgr", True, 3, 1, 64)([true], [outside], BatchMeta([face], [eye], None))
        torch.testing.assert_close(again.total, loss.total.detach())
    nothing = BatchMeta([torch.zeros_like(face)], None, None)
    assert LossCollator([name], [1.0], "bgr", True, 3, 1, 64)([true], [pred], nothing).total.item() == 0


def test_the_values_of_a_batch_and_its_total(device):
    """Two functions, one twice, two outputs and a mask: the total is the sum of the means of everything weighted."""
    generator = torch.Generator().manual_seed(9)

    def image(size, channels=3):
        return torch.rand(2, channels, size, size, generator=generator).to(device)

    true, pred = [image(32), image(64)], [image(32), image(64), image(64, 1)]
    meta = BatchMeta([image(32, 1), image(64, 1)])
    collator = LossCollator(["mae", "ffl", "none", "mae"], [1.0, 0.5, 0.0, 0.25], "rgb", False, 1, 1, 32, "mae")
    loss = collator(true, pred, meta)
    assert [list(output) for output in loss.unweighted] == [["mae", "ffl"]] * 2
    parts = []
    for t, p in zip(true, pred):
        parts += [1.25 * (t - p).abs().mean(), 0.5 * get_loss("ffl").function(t, p).mean()]
    mask = (meta.mask_face[1] - pred[2]).abs().mean((1, 2, 3))
    torch.testing.assert_close(loss.mask, mask)
    torch.testing.assert_close(loss.total, sum(parts) + mask.mean())
    on_cpu = loss.to_cpu()
    torch.testing.assert_close(on_cpu.total, loss.total.cpu())
    torch.testing.assert_close(on_cpu.mask, mask.cpu())


@pytest.mark.parametrize("name", ["ssim", "flip", "ffl"])
def test_loss_stays_in_float32_inside_autocast(device, name):
    true, pred = torch.rand(2, 3, 32, 32, device=device), torch.rand(2, 3, 32, 32, device=device)
    collator = LossCollator([name], [1.0], "bgr", False, 1, 1, 32)
    plain = collator([true], [pred], BatchMeta()).total
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mixed = collator([true], [pred], BatchMeta()).total
    assert mixed.dtype == torch.float32 and mixed == plain


def test_the_collator_tells_the_order_of_colours(device):
    true = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    pred = true.clone()
    pred[:, 0] *= 0.5  # less blue, which one sees less than less red
    bgr, rgb = (LossCollator(["flip"], [1.0], order, False, 1, 1, 32) for order in ("bgr", "rgb"))
    right = bgr([true], [pred], BatchMeta()).total
    torch.testing.assert_close(rgb([true.flip(1)], [pred.flip(1)], BatchMeta()).total, right)
    assert (rgb([true], [pred], BatchMeta()).total / right - 1).abs() > 0.05


@pytest.mark.parametrize(
    "change, message",
    [
        ({"functions": ["nope"]}, "unknown loss function 'nope'"),
        ({"functions": ["none"]}, "at least one"),
        ({"weights": [-1.0]}, "must not be negative"),
        ({"weights": [float("nan")]}, "must not be negative, and finite"),
        ({"weights": [0.0]}, "all weights are 0"),
        ({"weights": [1.0, 1.0]}, "2 weights given; give one for each"),
        ({"functions": ["mae"] * 5, "weights": [1.0] * 5}, "at most 4"),
        ({"smallest_output": 4}, "loss ssim: an output of 4 px is smaller than 6 px"),
        ({"functions": ["ms_ssim"]}, "loss ms_ssim: an output of 32 px is smaller than 48 px"),
        ({"color_order": "gbr"}, "unknown color order 'gbr'"),
        ({"mask_loss": "ms"}, "unknown loss of the learned mask 'ms'.*Known: mae, mse"),
    ],
)
def test_what_a_user_can_get_wrong(change, message):
    options = {
        "functions": ["ssim"],
        "weights": [1.0],
        "color_order": "bgr",
        "use_mask": True,
        "eye_multiplier": 3,
        "mouth_multiplier": 2,
        "smallest_output": 32,
    }
    with pytest.raises(SwapfastError, match=message):
        LossCollator(**(options | change))


def test_a_mask_asked_for_and_absent():
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(SwapfastError, match="choose a --mask-type"):
        LossCollator(["mae"], [1.0], "bgr", True, 1, 1, 32)([image], [image], BatchMeta())
