"""DALI's decoder "mixed" beside that of the CPU, by the share that the GPU's JPEG engine gets.

    python -m benchmarks.mixed --json FILE

Faces and masks of a prepared set. max_difference and mean_difference are of the CPU's pixels as DALI decodes them, in
levels of 255. Rows are written as they are measured; what they mean is said in ``benchmarks/decode.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import Results, leave_without_gpu, parser
from benchmarks.decode import Dali, jpeg_files, measured
from benchmarks.faces import head_folders
from pipelines.decode import BATCH, dali_version
from pipelines.prepare import prepare
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.prepared import open_prepared

LOADS = (1.0, 0.65, 0.0, 0.8, 0.5)  # 0.65 is DALI's own


def main() -> None:
    """Run the benchmark."""
    flags = parser("DALI's mixed decoder by hw_decoder_load")
    flags.add_argument("--size", type=int, default=256, help="px of the JPEGs; default 256")
    flags.add_argument("--faces", type=int, default=32, help="different ones; default 32")
    flags.add_argument("--batch", type=int, default=64, help="pictures that are decoded together; default 64")
    flags.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares of the JPEG engine, 0 to 1")
    options = flags.parse_args()
    leave_without_gpu()
    if dali_version() is None:
        raise SystemExit("DALI is not installed here")
    torch.cuda.init()  # so that the timer waits for the GPU
    repeats, count = (2, 2 * max(options.batch, BATCH)) if options.quick else (3, 1024)
    results = Results(options.json)
    with head_folders(options.faces) as (folder, _), TemporaryDirectory() as work:
        prepared = Path(work) / "prepared"
        prepare(folder, prepared, "jpeg", options.size, CropConfig(), MaskConfig())
        for kind in ("jpeg", "mask_jpeg"):
            files = jpeg_files(open_prepared(prepared), kind)
            on_cpu = Dali(files, BATCH)
            files = replace(files, expected=on_cpu.all())
            for row in measured(files, [on_cpu], count, repeats):
                results.add(row)
            for load in options.loads:
                decoders = [Dali(files, options.batch, True, fetch, load) for fetch in (False, True)]
                for row in measured(files, decoders, count, repeats):
                    results.add(row)


if __name__ == "__main__":
    main()
