"""Which faces a model has been trained on, side by side: whether somebody has exchanged the sides or the folders.

A checkpoint keeps the 8-byte digest of the pixels of every face that each side has had. They stay the same in a copy of
a folder, under other names, prepared or not, and with other masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pipelines.dataset import split_validation
from pipelines.fill import FaceSource
from pipelines.run.request import KnownFaces
from pipelines.run.run_state import inherited_state, table_of
from swapfast.batch import SIDES
from swapfast.checkpoints.folder import Checkpoint
from swapfast.errors import SwapfastError

FILE = "known_faces"  # its stem in a checkpoint
EXCHANGED_SHARE = 0.25  # of each side's faces that are known as the other side's, from which on sides are exchanged


def keys_of(source: FaceSource) -> np.ndarray:
    """Return the digest of each face's pixels, (N,) int64, in the order of the source."""
    return np.ascontiguousarray(source.folder.records.column("pixels")).view("<i8")[:, 0]


def know_faces(
    checkpoint: Checkpoint | None, sources: Sequence[FaceSource], share: float, override: bool
) -> KnownFaces:
    """Compare the faces of a start with those that the model has been trained on.

    share: of the faces, held out for validation.
    override: accept sides that are exchanged.
    Raises SwapfastError if they are exchanged and that is not accepted.
    """
    current = dict(zip(SIDES, map(keys_of, sources), strict=True))
    earlier_keys = {} if checkpoint is None else read_keys(checkpoint.tensors.get(FILE, {}))
    is_exchanged = (
        _are_exchanged(current, earlier_keys) if earlier_keys else _have_exchanged_digests(checkpoint, sources, share)
    )
    if is_exchanged and not override:
        a, b = (source.folder.path for source in sources)
        raise SwapfastError(
            f"-A {a} -B {b}: the sides are exchanged: side A has the faces that the model was trained on as side B, "
            "and side B those of side A. Exchange -A and -B, or accept the change with --override"
        )
    lines = []
    if is_exchanged and checkpoint is not None:
        earlier_keys = dict(zip(SIDES, (earlier_keys[side] for side in reversed(SIDES)))) if earlier_keys else {}
        overrides = inherited_state(checkpoint).get("overrides", [])
        change = {"iteration": checkpoint.step, "changes": {"sides": ["A, B", "B, A"]}}
        checkpoint.state["overrides"] = [*overrides, change]
        lines.append("--override: the sides are exchanged, and each decoder learns the other's faces")
    remarks = (
        {side: _remark(side, current, earlier_keys) for side in SIDES} if earlier_keys and not is_exchanged else {}
    )
    keys_of_sides = {side: np.union1d(keys, earlier_keys.get(side, keys)) for side, keys in current.items()}
    return KnownFaces({side: torch.from_numpy(keys) for side, keys in keys_of_sides.items()}, remarks, lines)


def refuse_exchanged(sources: Mapping[str, FaceSource], known_faces: Mapping[str, torch.Tensor]) -> None:
    """Raise SwapfastError where each side's folder holds the faces that the model was trained on as the other's.

    known_faces: of the checkpoint, see ``ModelMetadata``.
    """
    earlier_keys = read_keys(known_faces)
    if earlier_keys and _are_exchanged({side: keys_of(source) for side, source in sources.items()}, earlier_keys):
        raise SwapfastError(
            f"-A {sources['a'].folder.path} -B {sources['b'].folder.path}: the sides are exchanged: side A has the "
            "faces that the model was trained on as side B, and side B those of side A. Exchange -A and -B"
        )


def read_keys(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return what a checkpoint says, empty where it is from before it said so or says something else."""
    keys = {side: tensors[side].numpy() for side in SIDES if side in tensors and tensors[side].dtype == torch.int64}
    return keys if len(keys) == len(SIDES) and all(array.ndim == 1 for array in keys.values()) else {}


def _are_exchanged(current: Mapping[str, np.ndarray], earlier_keys: Mapping[str, np.ndarray]) -> bool:
    """Return whether more of each side's faces are known as the other side's than as its own."""
    for side, opposite in zip(SIDES, reversed(SIDES)):
        remaining, exchanged = (np.isin(current[side], earlier_keys[name]).mean() for name in (side, opposite))
        if exchanged < EXCHANGED_SHARE or exchanged <= 2 * remaining:
            return False
    return True


def _have_exchanged_digests(checkpoint: Checkpoint | None, sources: Sequence[FaceSource], share: float) -> bool:
    """Return whether each side has exactly the other's faces; for checkpoints that keep one digest a side."""
    earlier = table_of(None if checkpoint is None else checkpoint.state.get("data"))
    then = [table_of(earlier.get(side)).get("digest") for side in SIDES]
    if checkpoint is None or None in then or then[0] == then[1]:
        return False
    contents = [source.folder.records.column("content")[split_validation(source, share)[0]] for source in sources]
    return [hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest() for content in contents] == then[::-1]


def _remark(side: str, current: Mapping[str, np.ndarray], earlier_keys: Mapping[str, np.ndarray]) -> str:
    """Return how many of a side's faces are new to the model, and how many are known as the other side's."""
    opposite = SIDES[1 - SIDES.index(side)]
    keys = current[side]
    is_new = ~np.isin(keys, earlier_keys[side])
    text = f"{int(is_new.sum())} of {len(keys)} faces are new to this model"
    foreign = int(np.isin(keys[is_new], earlier_keys[opposite]).sum())
    return f"{text} on this side, and {foreign} of these are known as side {opposite.upper()}'s" if foreign else text
