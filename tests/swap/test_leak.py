"""How much of A's skin a swap keeps: pictures whose share is known, and runs that are told of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from benchmarks.people import PAIRS
from swapfast.batch import Batch, BatchMeta
from swapfast.losses import LossCollator
from swapfast.models.tiny import tiny
from swapfast.swap.leak import LeakMeter
from swapfast.synthetic import render
from swapfast.training.progress import ProgressLine
from swapfast.training.validation import Validation

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for


def _skin(color, count=6, seed=1):
    """Return faces (n, 3, 64, 64) of one skin in light of their own."""
    light = 1 + 0.2 * torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.tensor(color, dtype=torch.float64)[None, :, None, None] * light


def _means(a, b, mask=None):
    means = {"mean_a": a.mean(0).permute(1, 2, 0), "mean_b": b.mean(0).permute(1, 2, 0)}
    return means if mask is None else means | {"mean_mask_a": mask, "mean_mask_b": mask}


DEEP, PALE = (0.15, 0.25, 0.4), (0.5, 0.6, 0.75)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_the_skin_is_what_is_said(share, within):
    a, b = _skin(DEEP), _skin(PALE)
    swaps = share * a + (1 - share) * b  # A's light: seeds are the same
    leak = LeakMeter.from_means(_means(a, b)).leak(a, swaps, b, b)
    within("leak", abs(leak - share), 1e-6)  # float64


def test_light_and_pose_that_face_and_swap_share_do_not_count(within):
    """Held-out faces in other light than the training's: the face and its swap are both a third darker."""
    a, b = _skin(DEEP), _skin(PALE)
    shade = 0.1
    leak = LeakMeter.from_means(_means(a, b)).leak(a - shade, b - shade, b, b)
    within("leak", abs(leak), 1e-6)


def test_a_decoder_that_makes_one_grey_of_everybody_keeps_nobodys_skin(within):
    a, b = _skin(DEEP), _skin(PALE)
    grey = torch.full_like(a, 0.45)
    meter = LeakMeter.from_means(_means(a, b))
    within("leak", abs(meter.leak(a, grey, b, grey)), 1e-6)


def test_outside_of_the_mask_nothing_counts(within):
    a, b = _skin(DEEP), _skin(PALE)
    mask = torch.zeros(64, 64, 1)
    mask[16:48, 16:48] = 1
    swaps = b.clone()
    swaps[:, :, :16] = 0.9
    within("leak", abs(LeakMeter.from_means(_means(a, b, mask)).leak(a, swaps, b, b)), 1e-6)


def test_colours_may_come_in_either_order(within):
    a, b = _skin(DEEP), _skin((0.5, 0.3, 0.2))
    swaps = 0.4 * a + 0.6 * b
    rgb = LeakMeter.from_means(_means(a, b), "rgb").leak(*(x.flip(1) for x in (a, swaps, b, b)))
    within("leak", abs(rgb - 0.4), 1e-6)


def test_people_of_the_same_skin_have_no_meter():
    assert LeakMeter.from_means(_means(_skin(PALE), _skin(PALE) + 0.01)) is None


def test_how_far_apart_two_skins_are_is_told(within):
    dark, light = (torch.full((1, 3, 64, 64), value, dtype=torch.float64) for value in (0.2, 0.5))
    meter = LeakMeter.from_means(_means(dark, light))
    within("apart", abs(meter.apart - 0.3), 1e-12)
    half_mask = torch.zeros(64, 64, 1, dtype=torch.float64)
    half_mask[:32] = 1
    light[..., 32:, :] = 0.9  # outside the mask
    within("apart inside a mask", abs(LeakMeter.from_means(_means(dark, light, half_mask)).apart - 0.3), 1e-12)


def test_on_drawn_people_the_true_swap_keeps_nothing_and_a_herself_everything(within):
    """A different dozen of scenes makes the means; the true swaps show A's footage with B's face."""
    pair = PAIRS["deep_to_pale"]

    def faces(person, split, count):
        pictures = np.stack([render(person, pair.scene(split, n), 64).image for n in range(count)])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255

    people = pair.people()
    means = [faces(person, split, 12) for person, split in zip(people, ("train/a", "train/b"), strict=True)]
    true_a, true_b = (faces(person, "truth", 8) for person in people)
    mask = torch.zeros(64, 64, 1)
    mask[24:48, 20:44] = 1  # the middle of the picture: the face
    meter = LeakMeter.from_means(_means(*means, mask))
    # Eight scenes against twelve: their light differs; 0.12 is the most over ten seeds.
    within("leak of the true swap", abs(meter.leak(true_a, true_b, true_b, true_b)), 0.3)
    within("leak of A", abs(meter.leak(true_a, true_a, true_b, true_b) - 1), 1e-6)


class _Training:
    """What an observer sees of a run whose model is ``model``."""

    exit_early = stop = False
    autocast = None

    def __init__(self, model):
        self.evaluated, self.step, self.reported = model, 0, {}
        self.loss = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, 64)

    def fetch_losses(self):
        pass

    def report(self, values):
        self.reported = values


class _Same(torch.nn.Module):
    """A model that makes ``made[of]`` of all faces of a side."""

    learns_mask = False

    def __init__(self, made):
        super().__init__()
        self.made = made

    def swap(self, images, to, of=None):
        return [self.made[of or "a"].float().expand(len(images), -1, -1, -1)]


def test_a_run_warns_of_the_fourth_leak_in_a_row_and_once():
    a, b = _skin(DEEP), _skin(PALE)
    one_side = [
        (n, Batch([x.float()], [x.float()[:, None]], BatchMeta([torch.ones(6, 1, 1, 64, 64)]), 0))
        for n, x in enumerate((a, b))
    ]
    output = io.StringIO()
    model = _Same({"a": a.mean(0, keepdim=True), "b": b.mean(0, keepdim=True)})
    training = _Training(model)
    validation = Validation(1, one_side, ProgressLine(output), leak=LeakMeter.from_means(_means(a, b)))
    course = [(False, 0), *[(True, 0)] * 3, (False, 0), *[(True, 0)] * 3, (True, 1), (True, 1), (False, 1)]
    for leaking, warnings in course:
        model.made["a"] = (a if leaking else b).mean(0, keepdim=True)
        training.step += 1
        validation.on_step(training)
        assert output.getvalue().count("warning: ") == warnings, training.step
        assert training.reported["swap/leak"] == pytest.approx(float(leaking), abs=1e-5)
    assert "keeps 100 % of A's skin" in output.getvalue() and "keeps 0 % of A's skin" in output.getvalue()


def test_no_leak_is_measured_where_nothing_can_be_told():
    model = tiny().initialise(5)
    faces = torch.rand(2, 3, 64, 64)
    held_out = [(n, Batch([faces], [faces[:, None]], BatchMeta([torch.ones(2, 1, 1, 64, 64)]), 0)) for n in (0, 1)]
    training = _Training(model)
    Validation(1, held_out, ProgressLine(io.StringIO())).on_step(training)
    assert "swap/leak" not in training.reported and training.reported["validation/psnr_b"] > 3
