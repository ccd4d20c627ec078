"""Keras' own outputs and ours, in both directions. Keras is a dependency of the tests alone."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import torch

from swapfast.interop.keras import KerasTemplate, read_numbers, write_keras
from swapfast.interop.keras_architecture import read_architecture
from swapfast.interop.keras_archive import read_archive
from tests.interop.keras_files import PLANS, model_of, save_plan

# Sums of up to 1024 products of numbers below 1, in another order: each addition rounds by 2^-24 of the sum, seven
# layers deep, and a sigmoid shrinks what is left to a quarter. Measured 6e-8.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras on torch, which it reads from the environment when it is first imported."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed (pip install keras)")
    variables = {"KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path_factory.mktemp("keras"))}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        keras = pytest.importorskip("keras", exc_type=ImportError)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if keras.backend.backend() != "torch":
        pytest.skip(f"Keras runs on {keras.backend.backend()} here, not on torch")
    return keras


@pytest.fixture(scope="module")
def load(keras):
    """Loads a file as faceswap does, which has a layer of its own for the pixel shuffle."""

    class PixelShuffler(keras.layers.Layer):
        def __init__(self, size=(2, 2), data_format=None, **options):
            super().__init__(**options)
            self.size = tuple(size)

        def call(self, x):
            _, height, width, channels = x.shape
            rows, columns = self.size
            filters = channels // (rows * columns)
            x = keras.ops.reshape(x, (-1, height, width, rows, columns, filters))
            x = keras.ops.transpose(x, (0, 1, 3, 2, 4, 5))
            return keras.ops.reshape(x, (-1, height * rows, width * columns, filters))

        def compute_output_shape(self, shape):
            return shape[0], shape[1] * self.size[0], shape[2] * self.size[1], shape[3] // (self.size[0] * self.size[1])

        def get_config(self):
            return {**super().get_config(), "size": self.size, "data_format": None}

    return lambda path: keras.models.load_model(path, custom_objects={"PixelShuffler": PixelShuffler}, compile=False)


def _ours(model, pictures: list[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = model.eval()([torch.from_numpy(picture).permute(0, 3, 1, 2) for picture in pictures])
    return [output.permute(0, 2, 3, 1).numpy() for side in outputs for output in side]


def _read(path, plan):
    archive = read_archive(path)
    architecture = read_architecture(archive)
    model = model_of(plan)
    return model, KerasTemplate(archive, architecture, read_numbers(model, archive, architecture))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize("name", PLANS)
def test_outputs_are_those_of_keras_in_both_directions(name, keras, load, tmp_path, within):
    plan = PLANS[name].divided(16)
    rng = np.random.default_rng(2)
    pictures = [rng.random((2, 64, 64, 3), np.float32) for _ in "ab"]
    theirs = load(save_plan(tmp_path / "drawn.keras", plan))
    theirs.save(tmp_path / "a.keras")  # as Keras itself lays it out
    model, template = _read(tmp_path / "a.keras", plan)
    expected = theirs.predict(pictures, verbose=0)
    assert len(expected) == 2 * (1 + plan.learn_mask) and np.ptp(expected[0]) > 0.05
    for ours, output in zip(_ours(model, pictures), expected, strict=True):
        within("read", np.abs(ours - output).max(), TOLERANCE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1).add_(0.003)
    write_keras(model, template, tmp_path / "b.keras")
    changed = load(tmp_path / "b.keras").predict(pictures, verbose=0)
    assert np.abs(changed[0] - expected[0]).max() > 0.01
    for ours, output in zip(_ours(model, pictures), changed, strict=True):
        within("written", np.abs(ours - output).max(), TOLERANCE)
