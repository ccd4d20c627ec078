"""How fast are the losses, forward and backward: python -m benchmarks.losses

Those that make up for blur, scales or colour, taken in turn with every library here that has them:
    swapfast        ours: a map per pixel, borders included
    plain           the formula as printed, with square convolutions: benchmarks/plain_losses.py, the peer's way
    pytorch_msssim  a number per image, borders left out; its windows made as small as ours where an image is small
    torchmetrics    likewise (a number per image); its SSIM drops five more pixels at each border
    kornia          its SSIM, a map with borders
    piq             a number per image; without its own halving of the picture, and its GMSD on each colour by itself
                    (with its 3x3 kernels), as else it would do a twelfth of the work
No library has FLIP with gradients but NVIDIA's own loss, which is no package. piq is used where it is installed:
pip install --no-deps piq==0.8.0 (the torchvision it asks for is not needed here).

In a row:
    median_ms         forward, mean and backward to the prediction
    ratio             how many times faster than this row ours is: the median of ratios of two runs in the same turn
    ratio_to_fastest  only in ours: the smallest ``ratio`` of the others, which should be 0.95 or more
    added_mib         by how much a call raised the most memory in use, results included
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import statistics
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import plain_losses
from benchmarks.common import Results, Timing, compare, parser, peak_mib, reset_peak, significant, summary, timed
from swapfast.losses import get_loss
from swapfast.system import available_cores

Loss = Callable[[Tensor, Tensor], Tensor]
NAMES = ("ssim", "ms_ssim", "gmsd", "flip")
SEED = 1
LONGEST = 60.0  # seconds for one loss at one size: plain FLIP at 256 px gets fewer turns, at least three
PACKAGES = {"pytorch_msssim": "pytorch-msssim", "torchmetrics": "torchmetrics", "kornia": "kornia", "piq": "piq"}


def module(name: str, *, without_package: bool = False) -> types.ModuleType | None:
    """A module that may be missing. without_package: do not run its package's __init__, which wants torchvision."""
    package = name.partition(".")[0]
    if without_package and package not in sys.modules:
        library = importlib.util.find_spec(package)
        if library is None or library.submodule_search_locations is None:
            return None
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = list(library.submodule_search_locations)
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
        return None


def window(size: int) -> int:
    """MS-SSIM's, as small as ours for images of that size."""
    fits = min(11, size // 16)
    return fits - 1 + fits % 2


def pytorch_msssim(size: int) -> dict[str, Loss]:
    library = module("pytorch_msssim")
    if library is None:
        return {}
    # It refuses images that four halvings leave no more than four pixels beyond the window's: 64 px at window 3 is one.
    calls: dict[str, Loss] = {"ssim": lambda true, pred: 1 - library.ssim(pred, true, data_range=1.0)}
    if size > (window(size) - 1) * 16:
        win = window(size)
        calls["ms_ssim"] = lambda true, pred: 1 - library.ms_ssim(pred, true, data_range=1.0, win_size=win)
    return calls


def torchmetrics(size: int) -> dict[str, Loss]:
    library = module("torchmetrics.functional.image")
    if library is None:
        return {}
    single, multi = library.structural_similarity_index_measure, library.multiscale_structural_similarity_index_measure
    calls: dict[str, Loss] = {"ssim": lambda true, pred: 1 - single(pred, true, data_range=1.0)}
    if size // 16 >= 11:  # it takes its window's size from sigma, whatever it is told
        calls["ms_ssim"] = lambda true, pred: 1 - multi(pred, true, data_range=1.0)
    return calls


def kornia(size: int) -> dict[str, Loss]:
    library = module("kornia.metrics")
    return {} if library is None else {"ssim": lambda true, pred: 1 - library.ssim(pred, true, 11)}


def piq(size: int) -> dict[str, Loss]:
    ssim, ms_ssim, gmsd = (module(f"piq.{name}", without_package=True) for name in ("ssim", "ms_ssim", "gmsd"))
    if ssim is None or ms_ssim is None or gmsd is None:
        return {}
    win = window(size)

    def each_color(true: Tensor, pred: Tensor) -> Tensor:
        return gmsd._gmsd(pred.flatten(0, 1).unsqueeze(1), true.flatten(0, 1).unsqueeze(1))

    def multi(true: Tensor, pred: Tensor) -> Tensor:
        return 1 - ms_ssim.multi_scale_ssim(pred.clamp(0, 1), true, kernel_size=win)

    calls: dict[str, Loss] = {
        "ssim": lambda true, pred: 1 - ssim.ssim(pred.clamp(0, 1), true, downsample=False),
        "gmsd": each_color,
    }
    return calls | {"ms_ssim": multi} if win >= 3 else calls


def ours(size: int) -> dict[str, Loss]:
    return {name: get_loss(name).function for name in NAMES}


def plain(size: int) -> dict[str, Loss]:
    return {name: getattr(plain_losses, name) for name in NAMES}


BACKENDS = {
    "swapfast": ours,
    "plain": plain,
    "pytorch_msssim": pytorch_msssim,
    "torchmetrics": torchmetrics,
    "kornia": kornia,
    "piq": piq,
}


def make_pair(size: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Smooth pictures and slightly different ones; the second wants a gradient."""
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(batch, 3, 8, 8, generator=generator)
    true = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    pred = (true + 0.1 * torch.randn(true.shape, generator=generator)).clamp(0, 1)
    return true.to(device), pred.to(device).requires_grad_()


def step(loss: Loss, true: Tensor, pred: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def call() -> None:
        pred.grad = None
        loss(true, pred).mean().backward()

    return call


def added_mib(call: Callable[[], None], on_gpu: bool) -> float:
    """Memory at its most while ``call`` runs, beyond what was in use before."""
    call()  # filters and kernels are made and kept
    if on_gpu:
        torch.cuda.synchronize()
        mib_before = torch.cuda.memory_allocated() / 2**20
    else:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # what others have freed must not serve this one unseen
    reset_peak()
    if not on_gpu:
        mib_before = peak_mib(False)
    call()
    return round(peak_mib(on_gpu) - mib_before, 1)


def ratio(theirs: Timing, ours: Timing) -> float:
    return significant(statistics.median(a / b for a, b in zip(theirs.seconds, ours.seconds)))


def rows_of(name: str, size: int, batch: int, device: torch.device, repeats: int) -> list[dict]:
    """One loss at one size by all that have it."""
    true, pred = make_pair(size, batch, device)
    losses = {backend: make(size) for backend, make in BACKENDS.items()}
    calls = {backend: step(named[name], true, pred) for backend, named in losses.items() if name in named}
    on_gpu = device.type == "cuda"
    memory = {backend: added_mib(call, on_gpu) for backend, call in calls.items()}
    turn = sum(timed(call) for call in calls.values())
    times = compare(calls, max(min(3, repeats), min(repeats, int(LONGEST / turn))), warm_up=0)
    ratios = {backend: ratio(timing, times["swapfast"]) for backend, timing in times.items()}
    rows = []
    for backend, timing in times.items():
        labels: dict[str, object] = {
            "name": name,
            "size": size,
            "backend": backend,
            "device": device.type,
            "ratio": ratios[backend],
        }
        if backend in PACKAGES:
            labels["version"] = importlib.metadata.version(PACKAGES[backend])
        if backend == "swapfast":
            peers = {peer: value for peer, value in ratios.items() if peer != "swapfast"}
            labels["fastest_other"] = min(peers, key=peers.__getitem__)
            labels["ratio_to_fastest"] = min(peers.values())
        rows.append(summary(timing, batch, **labels, threads=torch.get_num_threads()) | {"added_mib": memory[backend]})
    return rows


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    flags.add_argument("--batches", type=int, nargs="+", default=[16, 64], help="images; default 16 and 64")
    flags.add_argument("--names", nargs="+", default=list(NAMES), choices=NAMES, help="which losses; default all")
    flags.add_argument("--threads", type=int, default=available_cores(), help="of PyTorch; default all cores")
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = flags.parse_args()
    torch.set_num_threads(options.threads)
    device, repeats = torch.device(options.device), 1 if options.quick else 11
    results = Results(options.json)
    for size in options.sizes:
        for batch in options.batches:
            for name in options.names:
                for row in rows_of(name, size, batch, device, repeats):
                    results.add(row)


if __name__ == "__main__":
    main()
