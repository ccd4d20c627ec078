"""Faces in the light of both sides: what a batch holds, when it is done, and that a run goes on with its ratio."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
from pipelines.dataset import TrainSet
from pipelines.loader import TrainLoader
from pipelines.side_light import SideLight, side_light
from swapfast.augment.draws import light_shares
from swapfast.batch import Batch, BatchMeta
from swapfast.config import AugmentationConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.preview.contact import COLUMNS
from swapfast.swap.quality import QualityProbe
from tests.swap.echo import echo

SIZE = 64
LIGHT = SideLight((0.5, 0.6, 0.8))


def config(exchange: str, **changes) -> TrainConfig:
    return TrainConfig(batch_size=5, augmentation=AugmentationConfig(exchange_light=exchange, **changes))


@pytest.fixture(scope="module")
def dim_faces(made_faces, tmp_path_factory) -> Path:
    """The made faces, those of B with half the levels."""
    folder = tmp_path_factory.mktemp("dim")
    for side in "ab":
        shutil.copytree(made_faces / side, folder / side)
    for path in (folder / "b").glob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 2)
    return folder


def sides_of(folder: Path) -> list[TrainSet]:
    return [TrainSet.from_folder(side.upper(), folder / side, SIZE) for side in "ab"]


def test_a_face_goes_all_the_way_to_the_others_light():
    """From its own light, share 0, to the other's, share 1; half of the way is the root of the ratio."""
    gains = LIGHT.gains(np.array([[0, 0.5, 1.0], [0, 0.5, 1.0]]))
    ratio = np.array(LIGHT.ratio)
    expected = [[np.ones(3), np.sqrt(ratio), ratio], [np.ones(3), 1 / np.sqrt(ratio), 1 / ratio]]
    np.testing.assert_allclose(gains, expected, rtol=1e-6)  # float32
    assert gains.dtype == np.float32
    np.testing.assert_allclose(LIGHT.b_as_a(), 1 / ratio, rtol=1e-6)
    np.testing.assert_allclose(LIGHT.b_as_a("rgb"), 1 / ratio[::-1], rtol=1e-6)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("shares_memory", [False, True])
def test_a_batch_is_changed_where_it_lies(order, shares_memory):
    """Inputs and targets by each face's own gain, and never brighter than white; where both are one memory, once."""
    rng = np.random.default_rng(2)
    targets = torch.from_numpy(rng.random((4, 2, 3, 8, 8), np.float32))
    inputs = [targets[:, 0], targets[:, 1]] if shares_memory else [torch.rand(4, 3, 8, 8) for _ in range(2)]
    shares = rng.random((2, 4))
    batch = Batch(inputs, [targets], BatchMeta(), 0)
    before = [inputs[0].double().numpy().copy(), inputs[1].double().numpy().copy(), targets.double().numpy().copy()]
    LIGHT.apply(batch, shares, order)
    gains = LIGHT.gains(shares).astype(float)[..., :: -1 if order == "rgb" else 1, None, None]
    for side in range(2):
        expected = np.minimum(before[side] * gains[side], 1)
        np.testing.assert_allclose(batch.inputs[side].numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(
            batch.targets[0][:, side].numpy(), np.minimum(before[2][:, side] * gains[side], 1), atol=1e-6
        )
    assert batch.targets[0].max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "kornia"])
@pytest.mark.parametrize("together", [1, 3])
def test_the_loaders_batches_differ_by_their_light_alone(made_faces, backend, together):
    """The light of a face follows from its side and ordinal: not from the batch it is in, or what else is drawn."""
    folders = [made_faces / side for side in "ab"]
    lit, plain = (
        TrainLoader.from_folders(folders, SIZE, (SIZE,), config=config(exchange), backend=backend)
        for exchange in ("always", "off")
    )
    assert lit.light is not None and plain.light is None
    for batch in lit.batches(4, together):
        without = plain.batch(batch.step)
        shares = np.stack([light_shares(lit.sampler.seed, batch.ordinals, side) for side in (0, 1)])
        lit.light.apply(without, shares)
        for got, expected in zip(batch.tensors, without.tensors, strict=True):
            assert torch.equal(got, expected)
    assert shares.min() >= 0 and shares.max() < 1 and len(np.unique(shares)) == shares.size


def test_shares_are_even(within):
    """Of 4,000 draws the mean is off by 0.0046 and the deviation by 0.0025 in the mean; five times that never."""
    shares = light_shares(7, np.arange(4000), 1)
    within("mean", abs(shares.mean() - 0.5), 0.023)
    within("deviation", abs(shares.std() - 1 / np.sqrt(12)), 0.0125)
    assert abs(np.corrcoef(shares, light_shares(7, np.arange(4000), 0))[0, 1]) < 5 / np.sqrt(4000)


@pytest.mark.slow
def test_light_is_exchanged_where_the_sides_are_lit_differently(made_faces, dim_faces, within):
    """Half the levels are half the levels: the same faces, darkened, are told to be as much darker."""
    alike, dim = sides_of(made_faces), sides_of(dim_faces)
    found = [side_light(sides, config("always")) for sides in (alike, dim)]
    within("half", abs(np.array(found[1].ratio) / found[0].ratio - 0.5).max(), 0.02)
    assert side_light(alike, config("auto")) is None
    assert side_light(dim, config("auto")) == found[1]
    assert side_light(dim, config("off")) is None and side_light(dim[:1], config("always")) is None
    assert "A's pictures are 2.00 times as bright" in SideLight((0.5, 0.5, 0.5)).line()
    assert "B's pictures are 1.50 times as bright" in SideLight((1.5, 1.5, 1.5)).line()


@pytest.mark.slow
def test_small_eyes_tell_nothing(made_faces, tmp_path):
    """Faces prepared at 16 px, whose eyes have 2: auto leaves them as they are, always says so."""
    for side in "ab":
        words = ["prepare", made_faces / side, tmp_path / side, "--size", 16]
        assert cli.main([*map(str, words)]) == 0
    sides = [TrainSet.from_folder(side.upper(), tmp_path / side, SIZE) for side in "ab"]
    assert side_light(sides, config("auto")) is None
    with pytest.raises(SwapfastError, match=r"--exchange-light always: fewer than 8 eyes in .*--exchange-light off"):
        side_light(sides, config("always"))


@pytest.mark.slow
def test_the_sheet_shows_the_light_of_both(dim_faces, tmp_path, capsys):
    """A's faces, all but the whole way to B's light, have half their levels; alone, or with off, they keep them."""
    sheets = {}
    for name, flags in {
        "other": ["-B", dim_faces / "b"],
        "alone": [],
        "off": ["-B", dim_faces / "b", "--exchange-light", "off"],
    }.items():
        out = tmp_path / f"{name}.png"
        words = ["augment", dim_faces / "a", "-o", out, "--size", SIZE, "--faces", 3, "--percentile", 99, *flags]
        assert cli.main([*map(str, words)]) == 0
        sheets[name] = cv2.imread(str(out)).astype(float)
    ratio = np.array(side_light(sides_of(dim_faces), config("auto")).ratio) ** 0.99
    head = sheets["off"].shape[0] - 3 * (SIZE + 2)
    for column in (COLUMNS.index("target"), COLUMNS.index("feed")):
        left = column * (SIZE + 2)
        lit, plain = (sheets[name][head : head + SIZE, left : left + SIZE] for name in ("other", "off"))
        np.testing.assert_allclose(lit, plain * ratio, atol=1)
    assert np.array_equal(sheets["alone"][:, : 3 * SIZE], sheets["off"][:, : 3 * SIZE])
    capsys.readouterr()
    assert cli.main(["augment", str(dim_faces / "a"), "-o", str(tmp_path / "x.png"), "--exchange-light", "always"]) == 2
    assert "--exchange-light always: the light of the other side is not known; give -B DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_with_the_light_it_measured(dim_faces, tmp_path, capsys):
    """To the bit; the state says the ratio, and a person is told. Asked for otherwise, it is measured anew."""
    words = ["-A", dim_faces / "a", "-B", dim_faces / "b", "-t", "tiny", "-b", 4, "--preview-images", 1, "-n"]
    words += ["--device", "cpu", "--validation", 0.2]

    def train(folder: str, iterations: int, *flags: str) -> tuple[dict, str]:
        code = cli.main([*map(str, ["train", *words, "-m", tmp_path / folder, "-i", iterations, *flags])])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        state = json.loads((tmp_path / folder / f"checkpoint-{iterations:08}" / "state.json").read_text())
        return state, printed.out

    whole, said = train("whole", 4)
    assert "light: by the whites of the eyes A's pictures are" in said
    assert whole["light_ratio"] and all(0.35 < part < 0.7 for part in whole["light_ratio"])
    first, _ = train("parts", 2)
    second, _ = train("parts", 4)
    assert first["light_ratio"] == second["light_ratio"] == whole["light_ratio"]
    weights = [load_file(tmp_path / f / "checkpoint-00000004" / "model.safetensors") for f in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    off, said = train("parts", 5, "--exchange-light", "off")
    assert off["light_ratio"] is None and "light:" not in said
    # Swaps are compared with B's faces in another light now: what was measured before says nothing of them.
    assert [row[0] for row in second["measured"]] == [2, 4] and [row[0] for row in off["measured"]] == [5]


def test_swaps_are_compared_with_faces_in_their_own_light():
    """A swap that is B's face in A's light is as near as can be, once B's faces are in that light."""
    face = torch.rand(6, 3, SIZE, SIZE) * 0.5
    gains = torch.tensor([0.5, 0.7, 0.9])
    model = echo(SIZE)
    quality = []
    for light in (None, gains):
        probe = QualityProbe(model, light=light)
        batches = [
            (number, Batch([pixels], [pixels[:, None]], BatchMeta(), 0))
            for number, pixels in ((0, face * gains[:, None, None]), (1, face))
        ]
        with torch.no_grad():
            assert len(list(probe.watch(batches))) == 2
        quality.append(probe.values()["swap/near"])
    assert quality[1] > 40 > quality[0]
