"""Larger originals, lightweight, df and liae: their sizes, their outputs, and whose face comes out."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn

from swapfast.checkpoints.transfer import freeze, part_of
from swapfast.config import ModelConfig
from swapfast.errors import SwapfastError
from swapfast.models import build_model
from swapfast.models.figures import GPU_GIB, ModelFigures, all_figures, measure
from swapfast.models.registry import MODELS, plan_model
from swapfast.models.summary import layer_rows, summary

SMALL = {"input_size": 64, "ae_dims": 32, "e_dims": 16, "d_dims": 16}


def _planned(name: str, learn_mask: bool = False, **sizes) -> nn.Module:
    with torch.device("meta"):
        return plan_model(ModelConfig(name=name, **sizes), learn_mask)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "dims", "millions"),
    [
        ("df", 128, (256, 64, 64, 22), 57.54),
        ("df-ud", 128, (256, 64, 64, 22), 54.47),
        ("liae-ud", 128, (256, 64, 64, 22), 82.38),
        ("df-ud", 256, (256, 64, 64, 22), 82.79),
        ("liae-ud", 256, (256, 64, 64, 22), 145.34),
        ("liae-udt", 224, (512, 64, 64, 32), 179.63),
        ("df-udt", 320, (320, 72, 72, 24), 137.09),
        ("liae-udt", 320, (320, 72, 72, 24), 168.59),
        ("df-ud", 384, (320, 80, 80, 26), 202.58),
        ("liae-udt", 512, (320, 72, 72, 24), 290.20),
    ],
)
def test_parameters_of_deepfacelabs_families(name, size, dims, millions):
    """As its own models have, which always learn a mask."""
    sizes = dict(zip(("ae_dims", "e_dims", "d_dims", "d_mask_dims"), dims, strict=True))
    model = _planned(name, True, input_size=size, **sizes)
    assert round(_parameters(model) / 1e6, 2) == millions
    assert model.input_size == size and model.output_sizes == (size,)


def test_usual_sizes_of_deepfacelabs_families():
    assert _parameters(_planned("df-ud", True)) == _parameters(
        _planned("df-ud", True, input_size=128, ae_dims=256, e_dims=64, d_dims=64, d_mask_dims=22)
    )


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ({"input_size": 128}, 115.6),
        ({"input_size": 128, "bottleneck": "8x8x512"}, 115.6),
        ({"input_size": 128, "bottleneck": "4x4x1024"}, 127.2),
        ({"input_size": 128, "bottleneck": "16x16x512"}, 209.3),
        ({"input_size": 256}, 160.7),
        ({"input_size": 256, "bottleneck": "4x4x1024"}, 172.3),
        ({"input_size": 256, "bottleneck": "16x16x512"}, 242.6),
    ],
)
def test_parameters_of_larger_originals(sizes, millions):
    assert round(_parameters(_planned("original", **sizes)) / 1e6, 1) == millions


def test_width_and_dense_layer_of_original():
    """The five halvings of 128 px begin with half the channels, and the dense layer is half as large."""
    model = _planned("original", input_size=128, encoder_width=64, dense=512)
    widths = [3, 64, 128, 256, 512, 512]
    encoder = sum(25 * i * o + o for i, o in itertools.pairwise(widths)) + 512 * 16 * 512 + 512
    encoder += 512 * 512 * 64 + 512 * 64 + 9 * 512 * 2048 + 2048
    assert _parameters(model.encoder) == encoder


def test_parameters_of_lightweight():
    assert _parameters(_planned("lightweight")) == 51_066_374


@pytest.mark.slow
@pytest.mark.parametrize("learn_mask", [False, True])
@pytest.mark.parametrize("name", ["df", "df-ud", "df-udt", "df-c", "liae", "liae-ud", "liae-t", "liae-udtc"])
def test_outputs_are_pictures_of_its_size(name, learn_mask, device):
    model = build_model(ModelConfig(name=name, **SMALL), learn_mask, 1).to(device)
    sides = [torch.rand(n, 3, 64, 64, device=device) for n in (3, 2)]
    shapes = [[tuple(output.shape) for output in side] for side in model(sides)]
    assert shapes == [[(n, 3, 64, 64), (n, 1, 64, 64)][: 1 + learn_mask] for n in (3, 2)]
    assert model.learns_mask == learn_mask
    torch.testing.assert_close(model.swap(sides[0], "a"), model(sides)[0], atol=1e-5, rtol=1e-5)
    swapped, own = model.swap(sides[0], "b")[0], model.swap(sides[0], "a")[0]
    assert not torch.equal(swapped, own)


def test_a_side_of_liae_owns_half_a_code():
    """B's weights are those that A uses too; the half that A has alone touches no face of B."""
    model = build_model(ModelConfig(name="liae-ud", **SMALL), False, 1)
    face = torch.rand(1, 3, 64, 64)
    own, both = model.code(face, "a").chunk(2, 1)
    first, second = model.code(face, "b").chunk(2, 1)
    assert torch.equal(first, second) and torch.equal(second, both) and not torch.equal(own, both)
    assert model.decoder("a") is model.decoder("b")
    before = model.swap(face, "b")[0]
    with torch.no_grad():
        for parameter in model.inters["a"].parameters():
            parameter.add_(1)
    assert torch.equal(model.swap(face, "b")[0], before)


def test_convolutions_are_drawn_as_the_family_does():
    """Glorot-uniform: within the root of 6 / (inputs + outputs), each counted with its window."""
    model = build_model(ModelConfig(name="df-ud", **SMALL), False, 1)
    weight = model.encoder.features.down2[0].weight
    bound = (6 / (25 * (16 + 32))) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert not model.encoder.features.down2[0].bias.any()


def test_parts_are_frozen_by_name():
    model = build_model(ModelConfig(name="liae", **SMALL), False, 1)
    assert list(model.parts()) == ["encoder", "decoder_shared", "inter_both", "inter_a"]
    assert {part_of(name) for name, _ in model.named_parameters()} == set(model.parts())
    freeze(model, ["inter_a"])
    assert {part_of(name) for name, p in model.named_parameters() if not p.requires_grad} == {"inter_a"}
    with pytest.raises(SwapfastError, match=r"unknown -f/--freeze-weights: part of the model 'liae' 'decoder_a'"):
        freeze(model, ["decoder_a"])
    with pytest.raises(SwapfastError, match=r"-f/--freeze-weights .*: nothing would be left to train"):
        freeze(model, list(model.parts()))


@pytest.mark.slow
def test_a_summary_counts_a_shared_decoder_once():
    model = build_model(ModelConfig(name="liae-d", **SMALL), True, 1)
    counts = {name: count for name, _, _, count, _ in layer_rows(model)}
    assert sum(counts.values()) == _parameters(model)
    assert f"{_parameters(model):,} parameters" in summary(model) and "decoder shared" in summary(model)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "df-x"}, r"-t/--trainer df-x: a name may end in a dash and letters of udtc, each once"),
        ({"name": "df-uu"}, r"-t/--trainer df-uu: "),
        ({"name": "liae-"}, r"-t/--trainer liae-: "),
        ({"name": "original-u"}, r"unknown model 'original-u'.*Known: .*original"),
        ({"name": "df-ud", "input_size": 144}, r"--input-size 144: df-ud takes multiples of 32 px from 64 to 512"),
        ({"name": "df", "input_size": 72}, r"--input-size 72: df takes multiples of 16 px"),
        ({"name": "liae", "input_size": 48}, r"--input-size 48: "),
        ({"name": "liae", "d_mask_dims": 16}, r"--d-mask-dims 16: .*; add --learn-mask or leave it out"),
        ({"name": "liae", "e_dims": 33}, r"--e-dims 33: must be even and positive; 64 is usual"),
        ({"input_size": 96}, r"--input-size 96: the model original takes 64, 128, 256 px"),
        ({"input_size": 128, "lowmem": True}, r"--lowmem with --input-size 128: is for 64 px"),
        ({"bottleneck": "8x4x512"}, r"--bottleneck '8x4x512': must be one of 4x4xC, 8x8xC, 16x16xC at 64 px"),
        ({"bottleneck": "64x64x8"}, r"--bottleneck '64x64x8': "),
        ({"bottleneck": "large"}, r"--bottleneck 'large': .* as in 4x4x1024"),
        ({"bottleneck": "4x4x0"}, r"--bottleneck '4x4x0': "),
        ({"ae_dims": 64}, r"--ae-dims 64: is no option of the model 'original'.*train df or liae"),
        ({"name": "df", "bottleneck": "8x8x512"}, r"--bottleneck '8x8x512': is no option of the model 'df'"),
        ({"name": "lightweight", "lowmem": True}, r"--lowmem True: is no option of the model 'lightweight'"),
        ({"name": "tiny", "input_size": 128}, r"--input-size 128: is no option of the model 'tiny', which takes none"),
    ],
)
def test_what_a_model_cannot_be_is_refused_in_one_line(config, said):
    with pytest.raises(SwapfastError, match=f"^{said}") as refusal:
        _planned(config.pop("name", "original"), **config)
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def rows() -> list[ModelFigures]:
    return all_figures()


@pytest.mark.long
def test_figures_of_every_model(rows):
    figures = {(row.name, row.size): row for row in rows}
    assert {name.partition("-")[0] for name, _ in figures} == set(MODELS)
    original, large = figures["original", 64], figures["liae-ud", 256]
    # Work of a forward pass, 10^9 products, as two operations each and three passes.
    assert original.gflop == pytest.approx(6 * 1.90, rel=0.005) and original.parameters == 82_062_470
    assert figures["original", 128].gflop == pytest.approx(6 * 7.33, rel=0.005)
    assert figures["lightweight", 64].gflop == pytest.approx(6 * 3.28, rel=0.005)
    decoder = 3 * 9 * 8**2 * 512 * 1024 + 25 * 64**2 * 64 * 3  # three doublings of equal work, and the last layer
    assert original.cycle_gflop == pytest.approx(2 * 6 * 1.90 + 2 * decoder / 1e9, rel=0.005)
    assert original.trained_gib == pytest.approx(82_062_470 * 16 / 2**30)
    for row in figures.values():
        assert list(row.largest_batch) == list(GPU_GIB)
        assert sorted(row.largest_batch.values()) == list(row.largest_batch.values()) and row.purpose
    assert large.largest_batch[24] < original.largest_batch[24]


@pytest.mark.slow
def test_figures_count_a_mask_of_no_model_and_no_weight_as_a_picture(rows):
    """What a dense layer keeps of its own weights is no picture: half of the batch would not fit otherwise."""
    (row,) = [row for row in rows if row.name == "tiny"]
    assert row.largest_batch[8] > 1000


@pytest.mark.slow
def test_a_training_with_cycles_has_room_for_fewer_faces():
    plain, cycled = (measure(ModelConfig(name="original"), cycles=cycles) for cycles in (False, True))
    assert dataclasses.replace(cycled, largest_batch=plain.largest_batch) == plain
    assert 0.4 < cycled.largest_batch[24] / plain.largest_batch[24] < 0.5  # more than twice as much is kept


@pytest.mark.long
def test_the_figures_are_a_command(capsys):
    import cli

    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert "82,062,470" in text and "liae-ud" in text
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["name"] == "original" and rows[0]["parameters"] == 82_062_470
