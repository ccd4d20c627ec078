"""Colours fitted to a reference: what each adjustment promises of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.swap.color import adjust, measure, membrane
from swapfast.swap.settings import ColorSettings

RNG = np.random.default_rng(5)
WEIGHTS = np.zeros((48, 48), np.float32)
WEIGHTS[8:40, 8:40] = 1
INSIDE = WEIGHTS > 0


def _picture(mean, spread) -> np.ndarray:
    mixing = RNG.normal(0, 1, (3, 3))
    return (np.array(mean) + spread * RNG.normal(0, 1, (48, 48, 3)) @ mixing / 3).astype(np.float32)


MADE, REFERENCE = _picture((0.5, 0.45, 0.4), 0.05), _picture((0.4, 0.5, 0.6), 0.08)


def fitted(kind: str, made=MADE, reference=REFERENCE, weights=WEIGHTS, **details) -> np.ndarray:
    settings = ColorSettings(type=kind, **details)
    return adjust(settings, made, reference, weights, measure(settings, made, reference, weights))


@pytest.mark.parametrize("kind", ["mean", "linear"])
def test_the_mean_is_that_of_the_reference(kind, within):
    result = fitted(kind)
    within("mean", np.abs(result[INSIDE].mean(0) - REFERENCE[INSIDE].mean(0)).max(), 1e-5)  # float32 sums


def test_linear_gives_the_covariance_too(within):
    within(
        "covariance", np.abs(np.cov(fitted("linear")[INSIDE].T) - np.cov(REFERENCE[INSIDE].T)).max(), 3e-5
    )  # 1e-6 of ridge


def test_reinhard_gives_mean_and_spread_in_lab(within):
    result, expected = (cv2.cvtColor(p, cv2.COLOR_BGR2LAB)[INSIDE] for p in (fitted("reinhard"), REFERENCE))
    # Of 100: OpenCV's conversion goes through tables in one direction, and back.
    within("mean", np.abs(result.mean(0) - expected.mean(0)).max(), 0.2)
    within("spread", np.abs(result.std(0) - expected.std(0)).max(), 0.2)


def test_histogram_gives_the_distribution(within):
    result = fitted("histogram", threshold=100.0)
    quantiles = np.linspace(0.05, 0.95, 19)
    apart = np.quantile(result[INSIDE], quantiles, axis=0) - np.quantile(REFERENCE[INSIDE], quantiles, axis=0)
    within("quantiles", np.abs(apart).max(), 2 / 255)  # histograms of whole levels


@pytest.mark.parametrize("kind", ["mean", "reinhard", "linear", "histogram", "seamless"])
def test_equal_pictures_need_no_change(kind, within):
    tolerance = 1.5 / 255 if kind in ("histogram", "reinhard") else 1e-4  # of float32 sums
    within(kind, np.abs(fitted(kind, reference=MADE) - MADE)[INSIDE].max(), tolerance)


@pytest.mark.parametrize("kind", ["mean", "reinhard", "linear", "histogram"])
def test_what_lies_outside_the_mask_does_not_count(kind):
    made, reference = MADE.copy(), REFERENCE.copy()
    made[~INSIDE], reference[~INSIDE] = 0, 1
    np.testing.assert_array_equal(fitted(kind)[INSIDE], fitted(kind, made, reference)[INSIDE])


def test_a_mean_of_statistics_lies_between_them():
    settings = ColorSettings(type="mean")
    first, second = (measure(settings, MADE, REFERENCE + shift, WEIGHTS) for shift in (0.0, 0.1))
    assert first is not None and second is not None
    between = adjust(settings, MADE, REFERENCE, WEIGHTS, (first + second) / 2)
    expected = REFERENCE[INSIDE].mean(0) + 0.05
    np.testing.assert_allclose(between[INSIDE].mean(0), expected, atol=1e-5)


def test_an_empty_mask_changes_nothing():
    assert fitted("linear", weights=np.zeros((48, 48), np.float32)) is MADE


def test_a_face_of_one_colour_becomes_finite():
    flat = np.full((48, 48, 3), 0.5, np.float32)
    for kind in ("reinhard", "linear", "histogram", "seamless"):
        assert np.isfinite(fitted(kind, flat)).all() and np.isfinite(fitted(kind, MADE, flat)).all()


def test_seamless_ends_at_the_reference_and_keeps_details(within):
    made = np.full((48, 48, 3), 0.3, np.float32)
    made[20:28, 20:28] += 0.2
    reference = np.full((48, 48, 3), 0.6, np.float32)
    result = fitted("seamless", made, reference)
    within("outside", np.abs(result - reference)[~INSIDE].max(), 1e-6)
    within("a constant difference", np.abs(result - (made + 0.3))[INSIDE].max(), 1e-5)


def test_the_membrane_is_harmonic(within):
    """Of x - y, x * y and x * x - y * y at the edge, the values inside are the same functions."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j].astype(np.float32)
    true = np.stack([x - y, x * y, x * x - y * y], axis=2)
    inside = np.hypot(x, y) < 0.8
    values = np.where(inside[..., None], np.float32(9), true)
    # Twelve sweeps a grid leave an error of about a hundredth of the range of 2.
    within("of a range of 2", np.abs(membrane(values, inside) - true).max(), 0.1)


def test_by_hand():
    np.testing.assert_allclose(fitted("manual", brightness=10.0), MADE + 0.1, atol=1e-6)
    np.testing.assert_allclose(fitted("manual", contrast=-100.0), 0.5, atol=1e-6)
    np.testing.assert_allclose(fitted("manual", colorspace="bgr", balance=[-100.0, 0.0, 0.0])[..., 0], 0, atol=1e-6)
    bluer = fitted("manual", colorspace="lab", balance=[0.0, 0.0, -20.0])
    assert (
        cv2.cvtColor(bluer, cv2.COLOR_BGR2LAB)[..., 2] < cv2.cvtColor(MADE, cv2.COLOR_BGR2LAB)[..., 2] - 2
    ).mean() > 0.9
    with pytest.raises(SwapfastError, match="--balance"):
        ColorSettings(balance=[1.0])


def test_names_of_peers_are_taken():
    known = {"avg-color": "mean", "color-transfer": "reinhard", "rct": "reinhard", "mkl": "linear"}
    assert {name: ColorSettings(type=name).type for name in known} == known
