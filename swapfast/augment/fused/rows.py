"""Images on a device that stay in their store until a kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StoredRows:
    """Rows of a tensor as one of N rows; the fused kernels read them where they are, ``gather`` copies them."""

    stored: Tensor  # (M, ...)
    rows: Tensor  # (N,) int64 on the same device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> StoredRows:
        return StoredRows(self.stored, self.rows[part])

    def gather(self) -> Tensor:
        """Return the rows, (N, ...), in memory of their own."""
        return self.stored.index_select(0, self.rows)
