"""When is a model too small, its bottleneck too narrow, its data too few? Trained on drawn faces, for the same steps.

    python -m benchmarks.capacity --json benchmarks/results/capacity_MACHINE.json

The network is ``original``'s at an eighth of its widths, so that a step takes hundredths of a second: four halvings
(16, 32, 64, 128), a dense layer of 128, the bottleneck's picture, doublings down to 8 channels. Each row changes one
thing of the usual one: its bottleneck, its dense layer, all its widths, the picture's size or the faces that it has. It
says, in dB within the face's mask:
    trained_db      B reconstructed by its own decoder, on faces that it was trained on
    held_out_db     the same on faces of B that it never saw
    swap_db         A swapped to B, against the true swap; mean_b_db is what the mean training face of B gets
The row 'noise' is the usual one with another seed: differences of that size say nothing. Loss mse, Adam at 1e-3 and a
fifth of it for the last fifth, no colour, no flip, 8 faces a side and step.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import shutil
import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from benchmarks.common import Results, parser
from pipelines.run.build import build_trainer
from pipelines.run.plan import loss_collator, plan_run
from pipelines.run.request import TrainRequest
from pipelines.sides import no_log
from swapfast.batch import SIDES
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up
from swapfast.sources import choose
from swapfast.stop import StopRequest
from swapfast.swap.evaluate import Evaluation, evaluate
from swapfast.synthetic import synthesize
from swapfast.training.progress import ProgressLine

LOW = 4  # px of the picture in front of the dense layers
BATCH, RATE, LAST_RATE = 8, 1e-3, 2e-4
LAST_STEPS = 0.2  # share of the steps at the last rate
PICTURE = 128  # px of the pictures that faces are cut from


@dataclass(frozen=True)
class Network:
    """The sizes of a network.

    size: px in and out. edge, channels: of the bottleneck's picture. dense: numbers of the code. width: channels of the
    encoder's first layer, and twice those of the decoders' last one. faces: of each side that it is trained on.
    """

    size: int = 64
    edge: int = 4
    channels: int = 128
    dense: int = 128
    width: int = 16
    faces: int = 200

    def build(self) -> FaceAutoencoder:
        """Return the network."""
        halvings = (self.size // LOW).bit_length() - 1
        widths = [3, *(self.width * min(2**step, 8) for step in range(halvings))]
        encoder = nn.Sequential(
            *(down(*pair) for pair in itertools.pairwise(widths)),
            nn.Flatten(),
            nn.Linear(widths[-1] * LOW**2, self.dense),
            nn.Linear(self.dense, self.channels * self.edge**2),
            Unflatten(self.channels, self.edge),
            up(self.channels, 4 * self.width),
        )
        decoders = {side: Decoder(self._branch()) for side in SIDES}
        return FaceAutoencoder("narrow original", self.size, (self.size,), encoder, decoders)

    def _branch(self) -> nn.Sequential:
        doublings = (self.size // (2 * self.edge)).bit_length() - 1
        last = [4 * self.width, 2 * self.width, self.width, self.width // 2]
        widths = [4 * self.width, *last[len(last) - doublings :]]
        return nn.Sequential(
            *(up(*pair) for pair in itertools.pairwise(widths)), SameConv(widths[-1], 3, 5), nn.Sigmoid()
        )


USUAL = Network()
EXPERIMENTS: list[tuple[str, str, Network]] = [
    ("usual", "", USUAL),
    ("bottleneck", "8x8x64", dataclasses.replace(USUAL, edge=8, channels=64)),
    ("bottleneck", "16x16x64", dataclasses.replace(USUAL, edge=16, channels=64)),
    ("dense", "8", dataclasses.replace(USUAL, dense=8)),
    ("dense", "32", dataclasses.replace(USUAL, dense=32)),
    ("dense", "512", dataclasses.replace(USUAL, dense=512)),
    ("width", "half", dataclasses.replace(USUAL, width=8)),
    ("width", "double", dataclasses.replace(USUAL, width=32)),
    ("faces", "25", dataclasses.replace(USUAL, faces=25)),
    ("faces", "50", dataclasses.replace(USUAL, faces=50)),
    ("faces", "100", dataclasses.replace(USUAL, faces=100)),
    ("noise", "seed 2", USUAL),
    ("size", "128 px, 8x8x64", dataclasses.replace(USUAL, size=128, edge=8, channels=64)),
    ("size", "128 px, 16x16x64", dataclasses.replace(USUAL, size=128, edge=16, channels=64)),
]


def some_faces(data: Path, folder: Path, count: int) -> None:
    """Copy the first ``count`` faces of each side of ``data`` to ``folder``, with what lies beside them."""
    for side in SIDES:
        (folder / side).mkdir(parents=True)
        pictures = sorted(path for path in (data / side).glob("*.png") if not path.stem.endswith("_mask"))
        for picture in pictures[:count]:
            for path in (data / side).glob(f"{picture.stem}*"):
                shutil.copy(path, folder / side)


def train(network: Network, data: Path, folder: Path, steps: int, seed: int) -> dict:
    """Train a network of those sizes; return its figures.

    data: folders of the faces, a and b, and of the true swaps. folder: a new one.
    """
    faces = folder / "faces"
    some_faces(data, faces, network.faces)
    config = choose(
        {
            "batch_size": BATCH,
            "seed": seed,
            "model.name": "tiny",  # in whose place the network comes
            "mask.mask_type": "file",
            "augmentation.color": False,
            "augmentation.flip": False,
            "loss.functions": ["mse"],
            "loss.eye_multiplier": 1.0,
            "loss.mouth_multiplier": 1.0,
            "loss.landmark_weight": 0.0,
            "optimizer.learning_rate": RATE,
            "run.input_a": str(faces / "a"),
            "run.input_b": str(faces / "b"),
            "run.model_dir": str(folder / "model"),
            "run.logs": False,
            "run.device": "cpu",
        }
    ).config
    model = network.build().initialise(seed)
    plan = plan_run(TrainRequest(config, {}))
    spec = dataclasses.replace(plan.spec, size=network.size)
    plan = dataclasses.replace(plan, model=model, loss=loss_collator(config, model), spec=spec)
    trainer = build_trainer(plan, StopRequest(), no_log)
    trainer.run.progress = ProgressLine(io.StringIO())
    live, losses, start = trainer.batches, [], time.process_time()
    assert isinstance(live, Generator)
    for step in range(steps):
        if step == round((1 - LAST_STEPS) * steps):
            trainer.optimizer.set_lr(LAST_RATE)
        losses.append(sum(float(loss.total) for loss in trainer.train_one_batch()))
    seconds = time.process_time() - start
    live.close()
    mean_b = trainer.run.tensors["faces"]["mean_b"].numpy()

    def measured(truth: Path) -> Evaluation:
        return evaluate(model, config, mean_b, truth)

    held_out = measured(data / "truth")
    shutil.copytree(faces / "b", folder / "trained" / "a")
    shutil.copytree(faces / "b", folder / "trained" / "b")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "cpu_ms_a_step": round(1000 * seconds / steps, 1),
        "loss": round(statistics.mean(losses[-max(1, steps // 20) :]), 5),
        "trained_db": round(measured(folder / "trained").reconstruction_psnr, 2),
        "held_out_db": round(held_out.reconstruction_psnr, 2),
        "swap_db": round(held_out.swap_psnr, 2),
        "mean_b_db": round(held_out.mean_b_psnr, 2),
    }


def main() -> None:
    flags = parser("bottlenecks, widths and amounts of data on drawn faces")
    flags.add_argument("--steps", type=int, default=300, help="of each training; default 300")
    flags.add_argument("--pair", type=int, default=1, help="seed of the two people; default 1, the demo's")
    flags.add_argument("--only", nargs="+", metavar="WHAT", help="rows of these experiments alone")
    arguments = flags.parse_args()
    steps = 3 if arguments.quick else arguments.steps
    results = Results(arguments.json)
    with TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        faces, pairs = (30, 2) if arguments.quick else (USUAL.faces, 40)
        synthesize(data, faces=faces, size=PICTURE, pairs=pairs, seed=arguments.pair)
        for number, (what, value, network) in enumerate(EXPERIMENTS):
            if arguments.only and what not in arguments.only:
                continue
            seed = int(value.removeprefix("seed ")) if what == "noise" else 1
            folder = Path(temporary) / str(number)
            figures = train(network, data, folder, steps, seed)
            shutil.rmtree(folder)
            results.add(
                {"part": what, "value": value, "pair": arguments.pair, **dataclasses.asdict(network), **figures}
            )


if __name__ == "__main__":
    main()
