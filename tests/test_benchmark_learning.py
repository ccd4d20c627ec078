"""The harness that recipes are tried with: disjoint people and faces, figures that mean something, runs that go on."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from benchmarks import learning
from benchmarks.landmark_net import MARGIN, SIZE, _mirrored, _moved, landmark_errors
from benchmarks.learning_report import rank_correlation
from benchmarks.people import CHOOSE, PAIRS, REPORT, SETS, SPLITS, draw_pair
from benchmarks.turned import ANGLES, AXES, draw_turned, vertex
from swapfast.config import ModelConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.models import build_model
from swapfast.models.side_statistics import Rows

COUNTS = (6, 4, 2)


def test_pairs_to_choose_by_and_to_report_share_nobody_and_no_scene():
    assert len(CHOOSE) >= 6 and len(REPORT) >= 6 and set(SETS) == {"choose", "report"}
    assert len({pair.seed for pair in PAIRS.values()}) == len(CHOOSE) + len(REPORT) == len(PAIRS)
    for pairs in SETS.values():
        assert sum(not pair.is_balanced for pair in pairs) >= 2
        depths = [person.skin for pair in pairs for person in (pair.a, pair.b)]
        assert min(depths) < 0.15 and max(depths) > 0.6
    people = [person for pair in PAIRS.values() for person in pair.people()]
    assert len({person.key for person in people}) == len(people)
    assert any(p.beard for p in people) and any(p.glasses for p in people) and any(p.age > 0.9 for p in people)
    scenes = [pair.scene(split, index) for pair in PAIRS.values() for split in SPLITS for index in range(5)]
    assert len({scene.backdrop for scene in scenes}) == len(scenes)


def test_unbalanced_sides_show_what_they_should():
    turned, night = PAIRS["turned"], PAIRS["day_night"]
    yaws = {split: [turned.scene(split, index).pose.yaw for index in range(40)] for split in SPLITS}
    assert max(yaws["train/a"]) <= 0 <= min(yaws["train/b"]) and max(yaws["truth"]) <= 0
    assert max(yaws["held_out/a"]) <= 0 <= min(yaws["held_out/b"]) and min(yaws["train/a"]) < -0.3
    light = [np.mean([night.scene(s, n).light.strength for n in range(20)]) for s in ("train/a", "train/b")]
    assert light[0] > 1.8 * light[1]
    raised = PAIRS["raised"]
    pitch = {split: np.mean([raised.scene(split, n).pose.pitch for n in range(40)]) for split in SPLITS}
    # Deviations of 0.09 over 40 pictures: 0.014 of a mean.
    assert pitch["train/a"] == pytest.approx(-0.12, abs=0.05) and pitch["train/b"] == pytest.approx(0.12, abs=0.05)
    assert pitch["truth"] == pytest.approx(-0.12, abs=0.05)
    still = [[PAIRS["still"].scene(f"train/{side}", n).pose.yaw for n in range(40)] for side in "ab"]
    assert max(map(abs, still[0])) <= 0.1 and max(map(abs, still[1])) > 0.3


@pytest.mark.long
def test_how_far_pictures_are_turned_is_found(tmp_path, within):
    """Pictures of B that were drawn turned are told so, blurred as swaps are and of another colour as well."""
    pair = PAIRS["raised"]
    faces = draw_pair(pair, tmp_path, (1, 1, 3))
    turned = draw_turned(pair, faces, TrainConfig(), 64, 3)
    again = draw_turned(pair, faces, TrainConfig(), 64, 3)
    assert np.array_equal(turned.pictures, again.pictures) and np.array_equal(turned.masks, again.masks)
    place = {angle: number for number, angle in enumerate(ANGLES)}
    for axis, name in enumerate(AXES):
        for angle in (-8.0, 0.0, 12.0):
            swaps = turned.pictures[axis, place[angle]] / 255
            blurred = np.stack([cv2.GaussianBlur(swap, (0, 0), 1.5) for swap in swaps])
            found = turned.turns(blurred * 0.8 + 0.1)
            # Angles are 4 degrees apart: whoever errs by less than half of that names the right one.
            within(f"{name} of {angle:g} degrees", abs(found[f"{name}_turn"] - angle), 2.0)
    halves = (turned.pictures[1, place[4.0]] / 255 + turned.pictures[1, place[8.0]] / 255) / 2
    within("pitch between two angles", abs(turned.turns(halves)["pitch_turn"] - 6), 2.0)
    assert vertex(ANGLES, -np.square(ANGLES - 5.0)) == pytest.approx(5.0)
    assert vertex(ANGLES, ANGLES) == ANGLES[-1] and vertex(ANGLES, np.square(ANGLES + 1)) == ANGLES[-1]


def test_landmarks_move_with_their_pixels(within):
    """A bright spot at a point stays at that point, whatever the crop is moved by."""
    edge = SIZE + 2 * MARGIN
    points = torch.tensor([[20.0, 25.0], [44.0, 30.0], [31.0, 50.0]])
    images = torch.zeros(3, 3, edge, edge)
    rows, columns = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    for image, (x, y) in zip(images, points):
        image[:] = torch.exp(-((columns - MARGIN - x) ** 2 + (rows - MARGIN - y) ** 2) / 8)
    crops, moved = _moved(images, points[:, None], torch.Generator().manual_seed(1))
    assert (moved[:, 0] - points).abs().amax(1).min() > 0.3, "they were moved"
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    weights = crops[:, 0] / crops[:, 0].sum((1, 2), keepdim=True)
    found = torch.stack([(weights * columns).sum((1, 2)), (weights * rows).sum((1, 2))], 1)
    # The bilinear sampling of a spot with a deviation of 2 px moves its centre by thousandths of a px.
    within("px between spot and point", float((found - moved[:, 0]).abs().max()), 0.05)


def test_mirrored_faces_have_their_landmarks_mirrored():
    edge = SIZE + 2 * MARGIN
    images = torch.zeros(8, 3, edge, edge)
    images[:, :, 30 + MARGIN, 10 + MARGIN] = 1  # the outer corner of the eye on the left
    targets = torch.full((8, 142), 20.0)
    targets[:, 72:74] = torch.tensor((10.0, 30.0))  # point 36
    targets[:, 136] = 0.3
    mirrored, found = _mirrored(images, targets, torch.Generator().manual_seed(1))
    turned = found[:, 136] < 0
    assert 0 < turned.sum() < 8
    assert (found[turned, 90] == SIZE - 1 - 10).all() and (found[turned, 91] == 30).all(), "point 45 is there now"
    assert (mirrored[turned, :, 30 + MARGIN, SIZE - 1 - 10 + MARGIN] == 1).all()
    assert torch.equal(mirrored[~turned], images[~turned]) and torch.equal(found[~turned], targets[~turned])


def test_landmark_errors_are_percent_of_the_eyes_distance():
    true = np.zeros((2, 68, 2))
    true[:, 42:48, 0] = 20
    assert landmark_errors(true + (3, 4), true) == pytest.approx([25, 25])


def test_recipes():
    plain = {"run.recipe": "faceswap", "optimizer.learning_rate": 1e-3}
    assert learning.recipe_of("adam-1e-3") == ("adam-1e-3", plain)
    assert learning.recipe_of("adam-1e-3:batch_size=8")[1] == {**plain, "batch_size": 8}
    name, settings = learning.recipe_of("mine:optimizer.learning_rate=2e-3,model.name=tiny")
    assert name == "mine" and settings == {"optimizer.learning_rate": 2e-3, "model.name": "tiny"}
    with pytest.raises(SwapfastError, match="--recipes adm: there are own, faceswap"):
        learning.recipe_of("adm")
    with pytest.raises(SwapfastError, match=r"optimizer\.learning_rte.*optimizer\.learning_rate"):
        learning.recipe_of("mine:optimizer.learning_rte=1")
    with pytest.raises(SwapfastError, match="no setting=value"):
        learning.recipe_of("mine:fast")
    with pytest.raises(SwapfastError, match=r"--pairs nobody: there are choose, report, deep_to_pale"):
        learning.chosen_pairs(["nobody"])
    assert [kind for kind, _ in learning.chosen_pairs(["report", "beard"])] == ["report"] * len(REPORT) + ["choose"]
    assert learning.measured_steps(2000) == [250, 375, 500, 750, 1000, 1500, 2000]
    assert learning.measured_steps(3) == [3]


@pytest.mark.parametrize("flags", [["--report"], ["--json", "kept.json"]])
def test_a_report_of_nothing(tmp_path, capsys, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    assert learning.main(["--out", str(tmp_path), "--cache", str(tmp_path), *flags]) == 2
    assert "holds no runs" in capsys.readouterr().err and not (tmp_path / "kept.json").exists()


@pytest.mark.slow
def test_rank_correlation():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    first = rng.integers(0, 6, 40)
    second = first + rng.integers(0, 4, 40)
    assert rank_correlation(first, second) == pytest.approx(scipy.spearmanr(first, second).statistic)
    assert rank_correlation([1, 2, 3], [9, 4, 1]) == pytest.approx(-1) and np.isnan(rank_correlation([1, 1], [1, 2]))


@pytest.mark.long
def test_a_run_that_is_cut_off_goes_on_and_measuring_changes_nothing(tmp_path, capsys):
    """Measured on the way, cut off and gone on with, a run ends as one that is measured at its end alone."""

    def run_of(name: str, *at: int) -> learning.RunOf:
        settings = {"batch_size": 2, "optimizer.learning_rate": 1e-3, "optimizer.ema": "2"}
        return learning.RunOf(PAIRS["alike"], "choose", "small", settings, 1, 4, tmp_path / name, at)

    def cut_off(line: str) -> None:
        raise KeyboardInterrupt

    faces = draw_pair(PAIRS["alike"], tmp_path, COUNTS)
    assert draw_pair(PAIRS["alike"], tmp_path, COUNTS) == faces
    one, whole = run_of("one", 2), run_of("whole")
    bench = learning.read_bench(faces, one.config(faces), 64, 64, with_landmarks=False)
    with pytest.raises(KeyboardInterrupt):
        learning.train_and_measure(one, bench, faces, log=cut_off)
    assert [row["step"] for row in json.loads(one.json.read_text())["rows"]] == [2]
    rows = learning.train_and_measure(one, bench, faces)
    (last,) = learning.train_and_measure(whole, bench, faces)
    assert [row["step"] for row in rows] == [2, 4] and rows[0]["swap_psnr"] != rows[1]["swap_psnr"]

    def figures(row: dict) -> dict:
        return {name: value for name, value in row.items() if "seconds" not in name}

    assert figures(rows[1]) == figures(last)
    assert last["weights"] == "ema-2" and last["other_weights"]["raw"]["swap_psnr"] != last["swap_psnr"]
    assert len(last["faces"]["psnr"]) == COUNTS[2] and np.mean(last["faces"]["psnr"]) == pytest.approx(
        last["swap_psnr"], abs=1e-3
    )

    written = one.json.read_bytes()
    command = ["--pairs", "alike", "--recipes", "small:batch_size=2,optimizer.learning_rate=1e-3,optimizer.ema=2"]
    command += ["--iterations", "4", "--out", str(tmp_path / "one"), "--cache", str(tmp_path), "--no-landmarks"]
    command += ["--faces", *map(str, COUNTS), "--report", "--json", str(tmp_path / "kept.json")]
    assert learning.main(command) == 2, "2 is a number here and a text there"
    assert "is of another settings" in capsys.readouterr().err
    command[3] = 'small:batch_size=2,optimizer.learning_rate=1e-3,optimizer.ema="2"'
    assert learning.main(command) == 0 and one.json.read_bytes() == written, "done is done"
    (kept,) = json.loads((tmp_path / "kept.json").read_text())["results"]
    assert [row["swap_psnr"] for row in kept["rows"]] == [row["swap_psnr"] for row in rows]
    assert (
        not {"path", "environment"} & kept.keys()
        and "faces" not in kept["rows"][0]
        and kept["settings"]["optimizer.ema"] == "2"
    )
    table = (tmp_path / "one" / "table.md").read_text()
    assert "## Pairs to choose by: alike" in table and f"{last['swap_psnr']:.2f}" in table
    assert {"alike.png", "alike-faces.png", "choose.png", "correlations.json"} <= {
        path.name for path in (tmp_path / "one").iterdir()
    }


def test_the_control_keeps_one_pair_of_statistics_for_both_sides():
    model = build_model(ModelConfig(name="tiny", code="encoder"), False, 1).train()
    learning.use_control(model)
    generator = torch.Generator().manual_seed(2)
    dark, pale = (shift + 0.3 * torch.rand(4, 3, 64, 64, generator=generator) for shift in (0.1, 0.6))
    model([dark, pale], cycles=True)
    model.update_statistics()
    for statistics in model.statistics.values():
        assert torch.equal(statistics.moments[0], statistics.moments[1]) and (statistics.steps == 1).all()
    first = next(iter(model.statistics.values()))
    features = torch.cat([torch.full((4, first.moments.shape[2], 2, 2), value) for value in (0.0, 2.0)])
    made = first(features, [Rows(4, "a", "a"), Rows(4, "b", "b")])
    assert torch.allclose(made[:4], torch.tensor(-1.0), atol=1e-4) and torch.allclose(
        made[4:], torch.tensor(1.0), atol=1e-4
    )


@pytest.mark.parametrize(
    ("config", "decoder"),
    [
        (ModelConfig(name="original", encoder_width=32, dense=256, bottleneck="4x4x256"), [1024, 512, 256, 3]),
        (ModelConfig(name="lightweight"), [2048, 1024, 512, 3]),
    ],
    ids=lambda value: value.name if isinstance(value, ModelConfig) else "",
)
def test_a_narrow_model_is_narrow_while_it_is_trained_and_measured(config, decoder):
    def widths() -> list[int]:
        model = build_model(config, False, 1)
        return [layer.out_channels for layer in model.decoders["a"].modules() if isinstance(layer, torch.nn.Conv2d)]

    def encoder_weights() -> int:
        return sum(weight.numel() for weight in build_model(config, False, 1).encoder.parameters())

    whole, weights = widths(), encoder_weights()
    with learning.narrower_networks(4):
        # A convolution in front of a pixel shuffle makes four times what is left of it; the last one makes the picture.
        assert widths() == [width // 4 for width in whole[:-1]] + [3]
        if config.name == "lightweight":  # of original the settings make the encoder narrower
            assert weights / 17 < encoder_weights() < weights / 15
    assert widths() == whole == decoder and encoder_weights() == weights
