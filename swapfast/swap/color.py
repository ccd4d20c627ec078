"""Fits the colours of a made face to those of the face it replaces.

What is measured is a vector, its ``Statistics``: means of it over neighbouring frames are statistics again, so whoever
has a face's track can smooth them before they are applied. Colours are BGR in 0..1, as they are coded.
"""

from __future__ import annotations

import cv2
import numpy as np

from swapfast.swap.settings import ColorSettings

Statistics = np.ndarray  # (n,) float64; n depends on the adjustment
_BINS = 256
_LEAST_VARIANCE = 1e-6  # of colours in 0..1: a tenth of a level of 255
_SWEEPS, _COARSEST = 12, 8  # of the membrane, and px of the grid that is solved first


def measure(settings: ColorSettings, face: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> Statistics | None:
    """Return what has to be known of a made face and of what it replaces; None where nothing is measured.

    face, reference: (S, S, 3) float32 BGR in 0..1. weights: (S, S) float32, how much each pixel counts.
    """
    inside = weights > 0
    if settings.type in ("none", "seamless", "manual") or not inside.any():
        return None
    w = weights[inside].astype(np.float64)
    w /= w.sum()
    if settings.type == "histogram":
        return np.concatenate([_histograms(picture[inside], w) for picture in (face, reference)])
    if settings.type == "reinhard":
        face, reference = _to_lab(face), _to_lab(reference)
    return np.concatenate([_moments(picture[inside].astype(np.float64), w) for picture in (face, reference)])


def adjust(
    settings: ColorSettings, face: np.ndarray, reference: np.ndarray, weights: np.ndarray, statistics: Statistics | None
) -> np.ndarray:
    """Return the made face with its colours fitted, (S, S, 3) float32; ``face`` itself where there is nothing to fit.

    Arguments as of ``measure``, whose result, or a mean of several, is ``statistics``.
    """
    if settings.type == "manual":
        return _by_hand(face, settings)
    if settings.type == "seamless":
        return _seamless(face, reference, weights > 0)
    if statistics is None:
        return face
    of_made, of_reference = np.split(statistics, 2)
    if settings.type == "histogram":
        return _match_histograms(face, of_made, of_reference, settings.threshold / 100)
    (mean, covariance), (target_mean, target_covariance) = _unpack(of_made), _unpack(of_reference)
    if settings.type == "mean":
        return face + (target_mean - mean).astype(np.float32)
    if settings.type == "linear":
        return _affine(face, _monge_kantorovich(covariance, target_covariance), mean, target_mean)
    spreads = np.sqrt(np.maximum(np.diag(target_covariance), 0) / np.maximum(np.diag(covariance), 1e-4))
    return _from_lab(_affine(_to_lab(face), np.diag(spreads), mean, target_mean))


def _moments(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return mean and second moments of (n, 3) pixels, (12,). Moments, unlike covariances, may be averaged."""
    mean = weights @ pixels
    return np.concatenate([mean, ((pixels * weights[:, None]).T @ pixels).ravel()])


def _unpack(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = moments[:3]
    return mean, moments[3:].reshape(3, 3) - np.outer(mean, mean)


def _affine(picture: np.ndarray, matrix: np.ndarray, mean: np.ndarray, target_mean: np.ndarray) -> np.ndarray:
    shift = target_mean - matrix @ mean
    return cv2.transform(picture, np.column_stack([matrix, shift]).astype(np.float32))


def _monge_kantorovich(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the symmetric matrix that moves one covariance to another with the least change of colours, (3, 3).

    Pitie and Kokaram, 'The linear Monge-Kantorovitch linear colour mapping', 2007.
    """
    source, target = (covariance + np.eye(3) * _LEAST_VARIANCE for covariance in (source, target))
    root = _power(source, 0.5)
    inverse = _power(source, -0.5)
    return inverse @ _power(root @ target @ root, 0.5) @ inverse


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 1e-12 if exponent < 0 else 0) ** exponent) @ vectors.T


def _to_lab(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.clip(picture, 0, 1), cv2.COLOR_BGR2LAB)


def _from_lab(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_LAB2BGR)


# --- histograms -------------------------------------------------------------------------------------------


def _histograms(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each channel's share of pixels by level, (3 * 256,)."""
    levels = np.rint(np.clip(pixels, 0, 1) * (_BINS - 1)).astype(np.int64)
    return np.concatenate([np.bincount(levels[:, c], weights, _BINS) for c in range(3)])


def _match_histograms(face: np.ndarray, source: np.ndarray, target: np.ndarray, share: float) -> np.ndarray:
    levels = np.arange(_BINS) / (_BINS - 1)
    channels = []
    for channel, of_made, of_reference in zip(cv2.split(face), source.reshape(3, -1), target.reshape(3, -1)):
        low, high = (1 - share) / 2, (1 + share) / 2
        shares = np.clip(_middles(of_made), low, high)
        mapped = np.interp(shares, *_rising(_middles(of_reference), levels))
        # Beyond the share that is fitted, levels keep their distance from the last one that is.
        ends = np.interp([low, high], *_rising(_middles(of_made), levels))
        mapped += levels - np.clip(levels, *ends)
        channels.append(np.interp(channel, levels, mapped).astype(np.float32))
    return cv2.merge(channels)


def _middles(histogram: np.ndarray) -> np.ndarray:
    """Return the share of pixels below the middle of each level."""
    return np.cumsum(histogram) - histogram / 2


def _rising(shares: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shares and levels without those that no pixel has, for interpolation."""
    rises = np.diff(shares, prepend=-1.0) > 1e-12
    return shares[rises], levels[rises]


# --- seamless ---------------------------------------------------------------------------------------------


def _seamless(face: np.ndarray, reference: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the made face plus the edge's difference, spread inwards like a membrane.

    This solves Poisson's equation of cloning (Perez and others, 2003): the details are the made face's, the edge the
    reference's.
    """
    inside = inside.copy()
    inside[0], inside[-1], inside[:, 0], inside[:, -1] = False, False, False, False
    return face + membrane(reference - face, inside)


def membrane(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return ``values`` with those ``inside`` replaced by the harmonic function of those around them.

    values: (S, S, C) float32. inside: (S, S) bool. Coarse grids give the start, sweeps of a mean of neighbours the end.
    """
    unknown = inside[..., None]
    size = len(values)
    if not inside.any():
        return values
    if inside.all():
        return np.zeros_like(values)
    if size <= _COARSEST:
        outside = values[~inside]
        start = np.where(unknown, outside.mean(0), values)
        sweeps = 4 * _SWEEPS
    else:
        half = size // 2 + size % 2
        is_outside = (~inside).astype(np.float32)
        weight = cv2.resize(is_outside, (half, half), interpolation=cv2.INTER_AREA)
        sums = cv2.resize(values * is_outside[..., None], (half, half), interpolation=cv2.INTER_AREA)
        coarse = sums / np.maximum(weight, 1e-6)[..., None]
        solved = membrane(np.ascontiguousarray(coarse), weight < 1e-6)
        start = np.where(unknown, cv2.resize(solved, (size, size), interpolation=cv2.INTER_LINEAR), values)
        sweeps = _SWEEPS
    cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    result = start.astype(np.float32)
    for _ in range(sweeps):
        result = np.where(unknown, cv2.filter2D(result, -1, cross, borderType=cv2.BORDER_REPLICATE), values)
    return result


# --- by hand ----------------------------------------------------------------------------------------------

_SPACES = {
    "hsv": (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR, (360.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    "lab": (cv2.COLOR_BGR2LAB, cv2.COLOR_LAB2BGR, (100.0, 254.0, 254.0), (0.0, -127.0, -127.0)),
}  # to and from it, each channel's range and lowest value


def _by_hand(face: np.ndarray, settings: ColorSettings) -> np.ndarray:
    result = np.clip(face, 0, 1)
    if any(settings.balance):
        if settings.colorspace == "bgr":
            result = _balanced(result, settings.balance)
        else:
            to, back, spans, lows = _SPACES[settings.colorspace]
            low, span = np.array(lows, np.float32), np.array(spans, np.float32)
            shares = (cv2.cvtColor(result, to) - low) / span
            result = cv2.cvtColor(_balanced(shares, settings.balance) * span + low, back)
    gain = np.float32(1 + settings.contrast / 100)
    return (result - np.float32(0.5)) * gain + np.float32(0.5 + settings.brightness / 100)


def _balanced(shares: np.ndarray, balance: list[float]) -> np.ndarray:
    """Return channels in 0..1 moved towards 1, or towards 0 where negative."""
    amounts = np.array(balance, np.float32) / 100
    room = np.where(amounts > 0, 1 - shares, shares)
    return (shares + amounts * room).astype(np.float32)
