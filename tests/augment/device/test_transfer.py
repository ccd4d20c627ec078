"""The host never waits for the device: constants are sent once, amounts without waiting.

On the "meta" device every copy from the host can be watched, without a GPU.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from swapfast.augment.augmentation import ImageAugmentation
from swapfast.augment.device.augmenter import DeviceAugmenter
from swapfast.augment.device.transfer import send, table
from swapfast.augment.draws import draw


class Copies(TorchFunctionMode):
    """Notes the shape of everything that goes from the host to the device: ``waited`` for, or only ``sent``."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[tuple[int, ...]] = []
        self.sent: list[tuple[int, ...]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.device.type == "meta":
            is_new = func in (torch.tensor, torch.as_tensor)
            is_copy = func is torch.Tensor.to and args[0].device.type == "cpu"
            if is_new or is_copy:
                (self.sent if kwargs.get("non_blocking") else self.waited).append(tuple(result.shape))
        return result


@pytest.fixture
def eight_draws():
    """Eight faces of 64 px, two grids among them."""
    return dataclasses.replace(draw(1, np.arange(8), 0, 64), clahe_grid=np.array([0, 2, 2, 4, 0, 0, 2, 0]))


@pytest.mark.long
def test_after_the_first_batch_only_amounts_are_sent(eight_draws):
    augmenter = DeviceAugmenter(64, 48, [20, 64])
    faces = torch.zeros(8, 64, 64, 4, dtype=torch.uint8, device="meta")
    extra_masks = torch.zeros(8, 2, 64, 64, dtype=torch.uint8, device="meta")
    augmenter(faces, extra_masks, eight_draws)
    with Copies() as copies:
        augmenter(faces, extra_masks, eight_draws)
    assert copies.waited == []
    assert copies.sent == [(8, 64)], "all amounts at once"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["color_adjust", "transform", "random_flip", "warp"])
def test_single_steps_send_only_amounts_too(eight_draws, step):
    images = torch.zeros(8, 64, 64, 3, device="meta")
    augmentation = ImageAugmentation(8, 64, draws=eight_draws)
    getattr(augmentation, step)(images)
    with Copies() as copies:
        getattr(augmentation, step)(images)
    assert copies.waited == [] and copies.sent


def test_what_is_sent_arrives(device):
    for amounts in (np.arange(6.0).reshape(2, 3), np.array([True, False]), np.arange(3)):
        arrived = send(amounts, device)
        assert arrived.device.type == device.type
        np.testing.assert_array_equal(arrived.cpu().numpy(), amounts, strict=True)
    ramp = table(lambda length: np.arange(length, dtype=np.float32)[::-1])
    assert ramp(3, device).tolist() == [2, 1, 0] and ramp(3, device).device.type == device.type
    assert ramp(3, device) is ramp(3, device) and len(ramp(4, device)) == 4
