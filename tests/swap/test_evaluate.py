"""The measure of a swap: its arithmetic, its protocol, and both kinds of truth folders."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from benchmarks.faces import head_png
from swapfast.config import CropConfig, MaskConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.folder import scan_folder
from swapfast.faces.masks import face_mask
from swapfast.models.tiny import tiny
from swapfast.swap.evaluate import evaluate, face_mask_for, read_pairs
from swapfast.swap.figures import Distances, color_errors, each_distance, masked_psnr, masked_ssim, match_colors
from swapfast.synthetic import synthesize


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    out = tmp_path_factory.mktemp("truth") / "made"
    synthesize(out, faces=1, size=128, pairs=4, seed=3, workers=2)
    return out / "truth"


@pytest.fixture(scope="module")
def model():
    return tiny().initialise(1)


def test_the_psnr_counts_what_lies_inside_the_mask():
    true = np.zeros((2, 4, 4, 3))
    made = true.copy()
    made[0, :2] = 0.1  # inside
    made[:, 2:] = 0.9  # outside
    mask = np.zeros((2, 4, 4))
    mask[:, :2] = 1
    figures = masked_psnr(made, true, mask)
    assert figures[0] == pytest.approx(20.0) and figures[1] == 100.0
    mask[0, :1] = 0.5
    made[0, :1] = 0.0
    assert masked_psnr(made, true, mask)[0] == pytest.approx(-10 * np.log10(0.01 * 4 / 6))


def _noisy(rng: np.random.Generator, count: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    true = cv2.GaussianBlur(rng.uniform(0, 1, (32, 32, 3 * count)), (0, 0), 2).reshape(32, 32, 3, count)
    true = np.ascontiguousarray(true.transpose(3, 0, 1, 2))
    return true + rng.normal(0, 0.03, true.shape), true, rng.uniform(0, 1, true.shape[:3])


def test_a_picture_in_another_colour_is_matched_and_the_colour_is_told():
    """A picture that differs by a shift alone has no error left; the squares of the two figures add up to the whole."""
    images, true, masks = _noisy(np.random.default_rng(1))
    shift = np.array((0.1, -0.2, 0.05))
    assert color_errors(true + shift, true, masks) == pytest.approx(np.sqrt((shift**2).mean()))
    np.testing.assert_allclose(match_colors(true + shift, true, masks), true, atol=1e-12)
    found = each_distance(images + shift, true, masks)
    raw, matched = (10 ** (-found[name] / 10) for name in ("psnr", "psnr_matched"))
    np.testing.assert_allclose(raw, matched + found["color_error"] ** 2, rtol=1e-9)
    outside = np.where(masks[..., None] > 0.5, true, 0.9)
    assert (masked_psnr(outside, true, masks > 0.5) == 100).all(), "what lies outside does not count"
    assert Distances.of(images, true, masks).psnr == pytest.approx(masked_psnr(images, true, masks).mean())


def test_ssim_is_the_papers(within):
    """At one pixel, by the paper's formula over its window; 1 for equal pictures and less for worse ones."""
    images, true, masks = _noisy(np.random.default_rng(2))
    assert masked_ssim(true, true, masks) == pytest.approx(1.0)
    assert (masked_ssim(images, true, masks) < masked_ssim((images + true) / 2, true, masks)).all()
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(window, window)[..., None] / window.sum() ** 2
    x, y = images[0, 10:21, 8:19], true[0, 10:21, 8:19]
    mean_x, mean_y = (weights * x).sum((0, 1)), (weights * y).sum((0, 1))
    var_x, var_y = (weights * (x - mean_x) ** 2).sum((0, 1)), (weights * (y - mean_y) ** 2).sum((0, 1))
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum((0, 1))
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected = expected / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))
    at = np.zeros((1, 32, 32))
    at[0, 15, 13] = 1
    # float64; variances come as differences of sums of up to 1, so the error is some 1e-16 / 9e-4.
    within("SSIM of a pixel", abs(masked_ssim(images[:1], true[:1], at)[0] - expected.mean()), 1e-10)


@pytest.mark.slow
def test_an_untrained_model_is_near_nothing(truth, model):
    result = evaluate(model, TrainConfig(), np.full((64, 64, 3), 0.5), truth)
    assert result.pairs == 4
    assert result.swap_psnr < 18 and 5 < result.unchanged_psnr < 16
    assert result.swap_psnr_matched > result.swap_psnr and result.mean_b_psnr_matched > result.mean_b_psnr
    assert 0.03 < result.mean_b_color_error < 1 and result.swap_ssim < 0.9, "grey is not B's colour"
    assert evaluate(model, TrainConfig(), np.full((64, 64, 3), 0.5), truth) == result, "nothing is drawn"


@pytest.mark.slow
def test_where_both_identities_are_one_nothing_has_to_change(truth, model, tmp_path):
    for side in "ab":
        shutil.copytree(truth / "b", tmp_path / side)
    result = evaluate(model, TrainConfig(), np.zeros((64, 64, 3)), tmp_path)
    assert result.unchanged_psnr == 100.0
    assert result.swap_psnr == pytest.approx(result.reconstruction_psnr), "A's picture is B's"
    assert result.own_crop_psnr == 100.0 and result.swap_psnr_own_crop == result.swap_psnr
    assert result.mean_b_psnr_matched_own_crop == result.mean_b_psnr_matched


def test_a_person_of_other_proportions_is_cut_otherwise(truth, model, tmp_path):
    """A's landmarks stand a twentieth further apart: B is smaller in A's crop than in those that she is learned of."""
    for side in "ab":
        shutil.copytree(truth / "b", tmp_path / side)
    for path in (tmp_path / "a").glob("*.json"):
        content = json.loads(path.read_text())
        points = np.array(content["landmarks"])
        content["landmarks"] = (points.mean(0) + 1.05 * (points - points.mean(0))).tolist()
        path.write_text(json.dumps(content))
    alike = read_pairs(truth, TrainConfig(), 64, 64)
    other = read_pairs(tmp_path, TrainConfig(), 64, 64)
    assert np.array_equal(other.own_b, alike.own_b) and np.array_equal(other.own_masks, alike.own_masks)
    assert np.array_equal(other.true_a, other.true_b) and 0.85 < other.masks.sum() / other.own_masks.sum() < 0.95
    result = other.measure(model, np.full((64, 64, 3), 0.5))
    expected = -10 * np.log10(
        (np.square(other.own_b.astype(float) - other.true_b).mean(-1) * other.masks).sum((1, 2))
        / other.masks.sum((1, 2))
    )
    assert result.own_crop_psnr == pytest.approx(expected.mean()) and 15 < result.own_crop_psnr < 35
    assert Distances.of(other.own_b, other.own_b, other.own_masks).psnr == 100


@pytest.mark.slow
def test_extracted_heads_and_plain_pictures_measure_alike(truth, model, tmp_path, within):
    """The same pairs as faceswap PNGs: pixels differ by one more resampling and A's crop by a whole-pixel window."""
    rng = np.random.default_rng(1)
    for side in "ab":
        (tmp_path / side).mkdir()
        for record in scan_folder(truth / side).records:  # each in its own head frame, as faceswap extracts them
            (tmp_path / side / record.path.name).write_bytes(head_png(record, 256, rng))
    plain = evaluate(model, TrainConfig(), np.full((64, 64, 3), 0.5), truth)
    heads = evaluate(model, TrainConfig(), np.full((64, 64, 3), 0.5), tmp_path)
    for name in ("unchanged_psnr", "mean_b_psnr", "swap_psnr"):
        within(name + ", dB apart", abs(getattr(plain, name) - getattr(heads, name)), 0.15)


def test_a_face_weighs_as_it_does_in_training(truth, tmp_path):
    """Dilated, and no face beyond the picture's edge; where training's mask cannot be had, extended."""
    shutil.copytree(truth / "b", tmp_path / "b")
    to_the_edge = np.full((128, 128), 255, np.uint8)
    to_the_edge[:, :16] = to_the_edge[:, -16:] = 0  # beside the face, as a mask that is white everywhere is refused
    cv2.imwrite(str(tmp_path / "b/0000_mask.png"), to_the_edge)
    crop = CropConfig(centering="head", vertical_offset=-25)
    full, usual = scan_folder(tmp_path / "b").records[:2]
    for face in (full, usual):
        for kind in ("file", "extended", "components"):
            for dilation in (0.0, 4.0, -4.0):
                config = TrainConfig(crop=crop, mask=MaskConfig(mask_type=kind, dilation=dilation))
                ours = face_mask_for(face, face, config, 96)
                np.testing.assert_array_equal(ours, face_mask(face, config.crop, config.mask, 96))
                assert ours[-1].max() == 0 and ours.max() == 255, "the crop reaches below these pictures"
    stored = TrainConfig(mask=MaskConfig(mask_type="bisenet-fp_face", dilation=4.0))
    np.testing.assert_array_equal(
        face_mask_for(usual, usual, stored, 96), face_mask(usual, stored.crop, MaskConfig(), 96)
    )


def test_an_empty_mask_is_named_and_not_a_nan(truth, model, tmp_path):
    shutil.copytree(truth, tmp_path / "truth")
    mask = tmp_path / "truth/b/0002_mask.png"
    cv2.imwrite(str(mask), np.zeros((128, 128), np.uint8))
    with pytest.raises(SwapfastError, match=r"b/0002\.png: its mask 0002_mask\.png .*: it is all black") as caught:
        evaluate(model, TrainConfig(mask=MaskConfig(mask_type="file")), np.zeros((64, 64, 3)), tmp_path / "truth")
    assert "\n" not in str(caught.value)
    assert np.isfinite(evaluate(model, TrainConfig(), np.zeros((64, 64, 3)), tmp_path / "truth").swap_psnr)


def test_a_picture_without_its_pair(truth, model, tmp_path):
    for side in "ab":
        shutil.copytree(truth / side, tmp_path / side)
    (tmp_path / "b" / "0002.png").unlink()
    with pytest.raises(SwapfastError, match="0002 is not in both a and b"):
        evaluate(model, TrainConfig(), np.zeros((64, 64, 3)), tmp_path)
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(SwapfastError, match="b: no such folder"):
        evaluate(model, TrainConfig(), np.zeros((64, 64, 3)), tmp_path)


def test_evaluating_leaves_the_model_as_it_was(truth, model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.train()
    evaluate(model, TrainConfig(), np.zeros((64, 64, 3)), truth)
    assert model.training and all(torch.equal(before[n], w) for n, w in model.state_dict().items())
