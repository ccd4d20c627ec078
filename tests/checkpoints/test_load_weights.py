"""Weights of another model, frozen parts, and the table of a network."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.checkpoints.transfer import freeze, load_weights_from, part_of, roles, trained_state
from swapfast.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.models.original import original
from swapfast.models.registry import plan_model
from swapfast.models.summary import layer_rows, summary
from swapfast.models.tiny import tiny
from swapfast.optim.optimizer import Optimizer


def _saved(folder, model, step=7) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder)
    checkpoints.save(Checkpoint(step, {"model": model.state_dict()}, {}))
    return checkpoints


def test_everything_that_fits_is_taken(tmp_path):
    source, model = tiny(learn_mask=True).initialise(1), tiny().initialise(2)
    folder = _saved(tmp_path / "m", source)
    snapshot = Snapshots(folder).snapshot(7)
    for path in (tmp_path / "m", snapshot):
        transfer = load_weights_from(model.initialise(2), path)
        theirs = source.state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in model.state_dict().items())
        count = {part: sum(part_of(n) == part for n in model.state_dict()) for part in transfer.total}
        assert transfer.loaded == count and transfer.skipped == [] and transfer.step == 7
    assert transfer.lines() == [
        f"weights from iteration 7 of {snapshot}: encoder 14 of 14, decoder_a 8 of 8, decoder_b 8 of 8"
    ]


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_an_exported_file_is_taken(tmp_path, kind):
    weights = {name: weight.to(kind) for name, weight in tiny().initialise(1).state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors", {"iteration": "41"})
    model = tiny().initialise(2)
    transfer = load_weights_from(model, tmp_path / "w.safetensors")
    assert transfer.step == 41 and transfer.skipped == [] and transfer.source == str(tmp_path / "w.safetensors")
    assert all(torch.equal(weight, weights[name].float()) for name, weight in model.state_dict().items())
    save_file(weights, tmp_path / "w.safetensors")
    assert load_weights_from(model, tmp_path / "w.safetensors").step == 0, "another program's"


def test_files_that_hold_no_weights_are_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "length.safetensors").write_bytes(b"\xff" * 64)
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in tmp_path.iterdir():
        with pytest.raises(SwapfastError, match=f"--load-weights {path}: cannot be read"):
            load_weights_from(tiny(), path)
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(SwapfastError, match="no weight of its encoder fits"):
        load_weights_from(tiny(), tmp_path / "other.safetensors")
    with pytest.raises(SwapfastError, match="no such folder"):
        load_weights_from(tiny(), tmp_path / "none.safetensors")


def test_what_does_not_fit_is_told_and_stays(tmp_path):
    source, model = tiny().initialise(1), tiny().initialise(2)
    weights = source.state_dict()
    weights["encoder.0.0.weight"] = weights["encoder.0.0.weight"][:8]
    del weights["decoders.b.face.3.bias"]
    CheckpointFolder(tmp_path).save(Checkpoint(3, {"model": weights}, {}))
    initial = {name: weight.clone() for name, weight in model.named_parameters()}
    transfer = load_weights_from(model, tmp_path)
    assert transfer.skipped == [
        "encoder.0.0.weight (8x3x5x5 there, 16x3x5x5 here)",
        "decoders.b.face.3.bias (missing there, 3 here)",
    ]
    loaded = model.state_dict()
    unchanged = {"encoder.0.0.weight", "decoders.b.face.3.bias"}
    assert all(torch.equal(loaded[name], initial[name] if name in unchanged else weights[name]) for name in loaded)
    assert "not taken: encoder.0.0.weight (8x3x5x5 there" in transfer.lines()[1]


def test_a_model_of_another_kind_is_refused(tmp_path):
    CheckpointFolder(tmp_path / "other").save(Checkpoint(1, {"model": {"encoder.x": torch.zeros(2)}}, {}))
    for path, said in (
        (tmp_path / "other", r"no weight of its encoder fits the model 'tiny'"),
        (tmp_path / "none", r"--load-weights .*none: no such folder; give a model folder or a \.safetensors file"),
        (tmp_path, r"holds no model"),
    ):
        with pytest.raises(SwapfastError, match=said):
            load_weights_from(tiny(), path)


def test_what_cannot_be_loaded_names_the_flag(tmp_path):
    folder = _saved(tmp_path, tiny().initialise(1))
    (folder.path(7) / "model.safetensors").write_bytes(b"")
    for path in (tmp_path, folder.path(7)):
        with pytest.raises(SwapfastError, match=r"^--load-weights .* damaged \(model.safetensors has 0") as raised:
            load_weights_from(tiny(), path)
        assert "--model-dir" not in str(raised.value)


def test_frozen_parts_do_not_move_and_the_state_follows():
    model = tiny().initialise(3)
    optimizer = Optimizer(model, OptimizerConfig())

    def step(optimizer):
        images = [torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)) for _ in "ab"]
        optimizer.backward(sum(side[0].square().mean() for side in model(images)))
        optimizer.step()

    step(optimizer)
    state = optimizer.state_dict()
    freeze(model, ["encoder", "decoder_a"])
    frozen = Optimizer(model, OptimizerConfig())
    frozen.load_state_dict(trained_state(model, state))
    initial = {name: weight.clone() for name, weight in model.named_parameters()}
    step(frozen)
    trained = {part_of(name) for name, weight in model.state_dict().items() if not torch.equal(weight, initial[name])}
    assert trained == {"decoder_b"}
    freeze(model, [])
    thawed = Optimizer(model, OptimizerConfig())
    thawed.load_state_dict(trained_state(model, frozen.state_dict()))
    step(thawed)
    trained = {part_of(name) for name, weight in model.state_dict().items() if not torch.equal(weight, initial[name])}
    assert trained == {"encoder", "decoder_a", "decoder_b"}
    with pytest.raises(SwapfastError, match="nothing would be left to train"):
        freeze(model, ["encoder", "decoder_a", "decoder_b"])


@pytest.mark.slow
def test_the_table_of_a_network():
    """82,062,470 parameters is the peer's count of its 'original'."""
    model = original()
    rows = layer_rows(model)
    assert sum(count for *_, count, _ in rows) == sum(p.numel() for p in model.parameters()) == 82_062_470
    assert rows[0][:3] == ("encoder.0.0", "SameConv", "128 x 32 x 32") and rows[-1][2] == "3 x 64 x 64"
    freeze(model, ["encoder"])
    text = summary(model)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert re.search(rf"encoder +{encoder:,} parameters\n", text) and "313.0 MiB in float32" in text
    assert re.search(rf"trained +{82_062_470 - encoder:,} parameters, the others \(\*\) are frozen", text)


DIMS = {"ae_dims": 16, "e_dims": 8, "d_dims": 8}
NARROW = {"encoder_width": 8, "dense": 32}


def _model(seed: int, learn_mask: bool = False, **options):
    """A model and what its checkpoints say of it."""
    config = TrainConfig(model=ModelConfig(**options), loss=LossConfig(learn_mask=learn_mask))
    return plan_model(config.model, learn_mask).initialise(seed), {"config": config.to_dict()}


@pytest.fixture
def narrow(monkeypatch):
    """The decoders of ``original`` with few channels, as its encoder has by options."""
    monkeypatch.setattr("swapfast.models.original.UP_WIDTHS", (16, 16, 8, 4, 4))
    monkeypatch.setattr("swapfast.models.original.CODE_CHANNELS", 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "loaded", "skipped"),
    [
        # The larger picture has a halving and a doubling more; the dense layers begin at 4 x 4 either way.
        (
            {"name": "original", "bottleneck": "4x4x64", **NARROW},
            {"name": "original", "input_size": 128, "bottleneck": "4x4x64", **NARROW},
            {"encoder": 14, "decoder_a": 8, "decoder_b": 8},
            ["encoder.4.0.weight (missing there", "decoders.a.face.0.0.weight (missing there"],
        ),
        (
            {"name": "original", "bottleneck": "4x4x64", **NARROW},
            {"name": "original", "input_size": 128, "bottleneck": "8x8x32", **NARROW},
            {"encoder": 11, "decoder_a": 8, "decoder_b": 8},
            ["encoder.4.0.weight (missing there"],
        ),
        (
            {"name": "original", "input_size": 256, "bottleneck": "8x8x32", **NARROW},
            {"name": "original", "bottleneck": "4x4x64", **NARROW},
            {"encoder": 11, "decoder_a": 8, "decoder_b": 8},
            ["encoder.8.0.weight (64x32x3x3 there, 64x64x3x3 here)"],
        ),
        # Four times the features of a picture twice the size.
        (
            {"name": "df-ud", "input_size": 64, **DIMS},
            {"name": "df-ud", "input_size": 128, **DIMS},
            {"encoder": 11, "decoder_a": 26, "decoder_b": 26},
            ["encoder.inter.dense1.weight (16x1024 there, 16x4096 here)", "encoder.inter.dense2.weight"],
        ),
        (
            {"name": "liae-ud", "input_size": 64, **DIMS},
            {"name": "liae-ud", "input_size": 128, **DIMS},
            {"encoder": 8, "decoder_shared": 26, "inter_both": 3, "inter_a": 3},
            ["inters.both.dense1.weight", "inters.a.dense1.weight"],
        ),
    ],
    ids=["original 64 to 128", "another bottleneck", "original 256 to 64", "df", "liae"],
)
def test_another_size_of_a_family_takes_what_fits(source, target, loaded, skipped, narrow, tmp_path):
    theirs, state = _model(1, **source)
    CheckpointFolder(tmp_path).save(Checkpoint(3, {"model": theirs.state_dict()}, state))
    model, _ = _model(2, **target)
    drawn = {name: weight.clone() for name, weight in model.named_parameters()}
    transfer = load_weights_from(model, tmp_path)
    assert dict(transfer.loaded) == loaded
    assert sum(transfer.total.values()) == len(transfer.skipped) + sum(loaded.values()) == len(drawn)
    for phrase in skipped:
        assert any(phrase in text for text in transfer.skipped), transfer.skipped
    assert len(transfer.lines()) == 2 and len(transfer.lines()[1]) < 500
    left = {text.split(" ")[0] for text in transfer.skipped}
    ours = {role: name for name, role in roles(model).items()}
    theirs_by_name = dict(theirs.named_parameters())
    taken = {ours[role]: theirs_by_name[name] for name, role in roles(theirs).items() if role in ours}
    for name, weight in model.named_parameters():
        assert torch.equal(weight, drawn[name] if name in left else taken[name]), name


def test_layers_of_another_size_play_the_same_part():
    """Halvings from the picture on, doublings up to the picture."""
    with torch.device("meta"):
        small, large = original(), original(input_size=256)
    ours, theirs = ({role: name for name, role in roles(model).items()} for model in (small, large))
    pairs = {ours[role]: theirs[role] for role in ours.keys() & theirs.keys() if role.endswith("weight")}
    assert {
        "encoder.3.0.weight": "encoder.3.0.weight",
        "encoder.5.weight": "encoder.7.weight",
        "encoder.8.0.weight": "encoder.10.0.weight",
        "decoders.a.face.0.0.weight": "decoders.a.face.1.0.weight",
        "decoders.a.face.3.weight": "decoders.a.face.4.weight",
    }.items() <= pairs.items()


def test_lightweight_with_a_mask_begins_with_one_without(tmp_path):
    source, state = _model(1, name="tiny")
    CheckpointFolder(tmp_path).save(Checkpoint(3, {"model": source.state_dict()}, state))
    model, _ = _model(2, learn_mask=True, name="tiny")
    transfer = load_weights_from(model, tmp_path)
    assert dict(transfer.loaded) == {"encoder": 14, "decoder_a": 8, "decoder_b": 8}
    assert transfer.total == {"encoder": 14, "decoder_a": 16, "decoder_b": 16}
    with torch.device("meta"):
        light, masked = (plan_model(ModelConfig(name="lightweight"), learn_mask) for learn_mask in (False, True))
    assert set(roles(light).values()) < set(roles(masked).values())


def test_dropout_is_no_matter_of_weights(narrow, tmp_path):
    source, state = _model(1, name="original", dropout=0.5, **NARROW)
    CheckpointFolder(tmp_path).save(Checkpoint(3, {"model": source.state_dict()}, state))
    for dropout in (0.0, 0.3):
        model, _ = _model(2, name="original", dropout=dropout, **NARROW)
        transfer = load_weights_from(model, tmp_path)
        assert transfer.loaded == transfer.total and not transfer.skipped
        assert model.state_dict().get("encoder.5.draws", 2 << 32) == 2 << 32, "its own, of its seed"


def test_an_exported_file_tells_its_network(narrow, tmp_path):
    """So its layers are found by what they do in a model of another size."""
    source, _ = _model(1, name="original", bottleneck="4x4x64", **NARROW)
    about = {"iteration": "12", "learned_mask": "false"}
    about["model_settings"] = json.dumps(ModelConfig(name="original", bottleneck="4x4x64", **NARROW).to_dict())
    weights = {name: weight.half() for name, weight in source.named_parameters()}
    save_file(weights, tmp_path / "a.safetensors", about)
    model, _ = _model(2, name="original", input_size=128, bottleneck="4x4x64", **NARROW)
    transfer = load_weights_from(model, tmp_path / "a.safetensors")
    assert dict(transfer.loaded) == {"encoder": 14, "decoder_a": 8, "decoder_b": 8} and transfer.step == 12
    assert torch.equal(model.encoder[6].weight, weights["encoder.5.weight"].float())
    about["model_settings"] = "{"
    save_file(weights, tmp_path / "a.safetensors", about)
    with pytest.raises(SwapfastError, match=r"a.safetensors: cannot be read \(Expecting property name"):
        load_weights_from(model, tmp_path / "a.safetensors")
    weights["encoder.0.0.bias"][0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    (tmp_path / "a.keras").write_bytes(b"PK")
    for name, said in (
        ("nan.safetensors", r"cannot be read \(encoder.0.0.bias holds a number that is not finite\)"),
        ("a.keras", r"is another program's file; make a model folder of it with `swapfast import`"),
    ):
        with pytest.raises(SwapfastError, match=rf"^--load-weights .*{name}: {said}"):
            load_weights_from(model, tmp_path / name)


def test_averaged_weights_are_taken_unless_told_otherwise(tmp_path):
    source, averaged = tiny().initialise(1), tiny().initialise(3)
    averages = {f"500/{name}": weight for name, weight in averaged.state_dict().items()}
    CheckpointFolder(tmp_path).save(Checkpoint(7, {"model": source.state_dict(), "ema": averages}, {}))
    model = tiny().initialise(2)
    for flag, expected, begin in ((True, averaged, "averaged weights (ema-500) from"), (False, source, "weights from")):
        transfer = load_weights_from(model, tmp_path, flag)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
        assert transfer.lines()[0].startswith(begin) and (transfer.to_dict().get("weights") == "ema-500") == flag
