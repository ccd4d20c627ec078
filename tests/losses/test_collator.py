"""Masks, multipliers and weights: against faceswap's totals and against the formula written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swapfast.batch import BatchMeta
from swapfast.errors import SwapfastError
from swapfast.losses import LOSSES, LossCollator


def _manifest_configs(golden) -> dict:
    import json

    return json.loads((golden.folder / "manifest.json").read_text())["files"]["loss_collator.npz"]["params"]["configs"]


def _run(golden, device, config):
    masks, pairs = golden("loss_collator"), golden("loss_inputs")

    def tensor(array):
        return torch.from_numpy(array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)).to(device)

    def image(which, output):
        """The 32 px pair is not stored: it is the 64 px one averaged 2 x 2 (its per-item losses say so)."""
        if f"{which}_{output}" in pairs.files:
            return tensor(pairs[f"{which}_{output}"])
        return torch.nn.functional.avg_pool2d(tensor(pairs[f"{which}_64"]), 64 // int(output))

    outputs = config["outputs"]
    true = [image("true", o) for o in outputs]
    pred = [image("pred", o).requires_grad_() for o in outputs]
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


@pytest.mark.golden
def test_totals_and_gradients_are_the_peers(golden, device, within):
    """5e-5 and not 1e-5: the peer's ssim is itself 2.3e-5 off float64 (test_functions measures both)."""
    vectors = golden("loss_collator")
    checked = 0
    for name, config in _manifest_configs(golden).items():
        used = {f for f in config["functions"] if f != "none"}
        if not used <= set(LOSSES) or name == "duplicate_function":
            continue
        checked += 1
        pred, loss = _run(golden, device, config)
        total = float(vectors[f"total_{name}"])
        within(f"{name} total, relative", abs(loss.total.item() - total) / total, 5e-5)
        for output, values in enumerate(loss.unweighted):
            for function, value in values.items():
                theirs = vectors[f"unweighted_{name}_out{output}_{function}"]
                error = np.abs(value.detach().cpu().numpy() / theirs - 1).max()
                within(f"{name} out{output} {function} per item, relative", error, 5e-5)
        for output, image in enumerate(pred):
            if f"grad_{name}_out{output}" not in vectors.files:
                continue
            (grad,) = torch.autograd.grad(loss.total, image, retain_graph=True)
            theirs = vectors[f"grad_{name}_out{output}"]
            error = np.abs(grad.cpu().numpy() - theirs).max() / np.abs(theirs).max()
            within(f"{name} out{output} gradient, relative", error, 1e-4)
    assert checked >= 5


@pytest.mark.golden
def test_a_function_named_twice_adds_its_weights(golden, device, within):
    """The peer loses the first weight (total = 0.5 * ssim); the right total is 1.5 * ssim."""
    config = _manifest_configs(golden)["duplicate_function"]
    _, loss = _run(golden, device, config)
    theirs = float(golden("loss_collator")["total_duplicate_function"])
    kept, given = config["weights"][1], sum(config["weights"])
    within("duplicate total, relative", abs(loss.total.item() / (theirs / kept * given) - 1), 5e-5)


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


def test_loss_stays_in_float32_inside_autocast(device):
    true, pred = torch.rand(2, 3, 32, 32, device=device), torch.rand(2, 3, 32, 32, device=device)
    collator = LossCollator(["ssim"], [1.0], "bgr", False, 1, 1, 32)
    plain = collator([true], [pred], BatchMeta()).total
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mixed = collator([true], [pred], BatchMeta()).total
    assert mixed.dtype == torch.float32 and mixed == plain


@pytest.mark.parametrize(
    "change, message",
    [
        ({"functions": ["nope"]}, "unknown loss function 'nope'"),
        ({"functions": ["none"]}, "at least one"),
        ({"weights": [-1.0]}, "must not be negative"),
        ({"smallest_output": 4}, "an output of 4 px is smaller"),
    ],
)
def test_what_a_user_can_get_wrong(change, message):
    given = {
        "functions": ["ssim"],
        "weights": [1.0],
        "color_order": "bgr",
        "use_mask": True,
        "eye_multiplier": 3,
        "mouth_multiplier": 2,
        "smallest_output": 32,
    }
    with pytest.raises(SwapfastError, match=message):
        LossCollator(**(given | change))


def test_a_mask_asked_for_and_absent():
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(SwapfastError, match="choose a --mask-type"):
        LossCollator(["mae"], [1.0], "bgr", True, 1, 1, 32)([image], [image], BatchMeta())
