"""Keeping single steps from being too large. Everything stays on the device: nothing here waits for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from swapfast.errors import SwapfastError, unknown_name

METHODS = ("autoclip", "global_norm", "norm", "value")
_LONGEST_HISTORY = 100_000
_FIRST_CAPACITY = 1024  # of a history without an end, which doubles as it fills


class NormHistory:
    """The newest gradient norms, in the order they came and sorted, so that a percentile needs no sorting.

    One norm in and one out costs a few passes over the numbers: on a CPU 0.2 ms for 10 000 where sorting takes 0.6,
    13 ms for a million where it takes 108.
    length: how many are kept; 0 keeps all. The peer's 0 keeps none and fails, though its help says all.
    Of a fixed length all tensors are written in place, so that a CUDA graph finds them where it was captured.
    """

    def __init__(self, length: int, device: torch.device | str = "cpu") -> None:
        self._length = length
        self._seen = torch.tensor(0, device=device)  # finite norms so far
        self._allocate(length or _FIRST_CAPACITY)

    def _allocate(self, capacity: int) -> None:
        """Make room for so many norms, none of which is there yet."""
        device = self._seen.device
        self._ring = torch.full((capacity,), torch.inf, device=device)  # norm n lies at n modulo its length
        self._sorted = self._ring.clone()
        self._places = torch.arange(capacity, device=device)

    def _fill(self, norms: Tensor, count: Tensor | int) -> None:
        """Put ``norms`` at the beginning of the ring. count: how many there have been."""
        self._ring.fill_(torch.inf)
        self._ring[: len(norms)] = norms
        self._sorted.copy_(self._ring.sort().values)
        self._seen.copy_(torch.as_tensor(count))

    @property
    def device(self) -> torch.device:
        """The device that holds the norms."""
        return self._ring.device

    def add(self, norm: Tensor, calls: int) -> None:
        """Add ``norm``, a scalar, if it is finite. calls: at least the norms so far, this one included."""
        while self._length == 0 and calls > len(self._ring):
            norms, count = self._ring, self._seen.clone()
            self._allocate(2 * len(norms))
            self._fill(norms, count)
        finite = norm.isfinite()
        slot = (self._seen % len(self._ring)).reshape(1)
        oldest = self._ring[slot]
        new = torch.where(finite, norm.float(), oldest)
        without = F.pad(self._sorted[1:], (0, 1), value=torch.inf)
        without = torch.where(self._places >= torch.searchsorted(self._sorted, oldest), without, self._sorted)
        place = torch.searchsorted(without, new)
        inserted = torch.where(self._places == place, new, without.roll(1))
        self._sorted.copy_(torch.where(self._places < place, without, inserted))
        self._ring.index_copy_(0, slot, new)
        self._seen.add_(finite)

    def percentile(self, percent: float) -> Tensor:
        """Return a percentile of the norms, a scalar, interpolated linearly as numpy does. Infinite without norms."""
        last = (self._seen.clamp(max=len(self._ring)) - 1).clamp(min=0)
        at = last * (percent / 100)
        low = at.floor().long()
        # Indexing with a scalar would ask the host for its value.
        below, above = self._sorted[torch.stack([low, torch.minimum(low + 1, last)])].unbind()
        return torch.lerp(below, above, (at - low).float())

    def state_dict(self) -> dict[str, Tensor]:
        """Return 'ring' and 'seen'."""
        return {"ring": self._ring.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave; of a longer history, the newest norms that there is room for."""
        ring, seen = (state[name].to(self._ring.device) for name in ("ring", "seen"))
        if self._length and len(ring) == self._length:
            self._fill(ring, seen)
            return
        count = int(seen)
        order = torch.arange(max(0, count - len(ring)), count, device=ring.device) % len(ring)
        norms = ring[order]
        norms = norms[-self._length :] if self._length else norms
        capacity = self._length or max(_FIRST_CAPACITY, len(ring))
        if capacity != len(self._ring):
            self._allocate(capacity)
        self._fill(norms, len(norms))

    def clear(self) -> None:
        """Forget all norms."""
        self._fill(self._ring[:0], 0)

    def __len__(self) -> int:
        """Return how many norms it holds. Waits for the device."""
        return min(int(self._seen), len(self._ring))

    def newest(self) -> Tensor:
        """Return the norms, oldest first. Waits for the device."""
        count = int(self._seen)
        return self._ring[torch.arange(count - len(self), count, device=self._ring.device) % len(self._ring)]


class GradClip:
    """Limits gradients by one of the peer's methods.

    autoclip     the norm of all gradients together, to a percentile of the norms so far: that of 10 times ``value``
    global_norm  the norm of all gradients together, to ``value``
    norm         the norm of each weight's gradient, to ``value``
    value        each element, to -value .. value

    autoclip_history: how many norms autoclip looks back on, this step's included; 0 is all of them. A norm that is not
    finite is neither remembered nor clipped. Raises SwapfastError for what makes no sense.
    """

    def __init__(self, method: str, value: float, autoclip_history: int = 10000) -> None:
        if method not in METHODS:
            raise unknown_name("gradient clipping (--clip)", method, METHODS)
        if not 0 <= value <= 10:
            raise SwapfastError(f"--clip-value {value}: must lie within 0 and 10")
        if value == 0 and method != "autoclip":
            raise SwapfastError(f"--clip-value 0 with --clip {method}: nothing would ever move; give a larger value")
        if not 0 <= autoclip_history <= _LONGEST_HISTORY:
            raise SwapfastError(f"--autoclip-history {autoclip_history}: must lie within 0 and {_LONGEST_HISTORY}")
        self.method, self.value = method, value
        self.history = NormHistory(autoclip_history) if method == "autoclip" else None
        self._calls = 0

    @torch.no_grad()
    def __call__(self, parameters: Iterable[Parameter]) -> None:
        """Clip the gradients of ``parameters`` in place."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        if self.method == "value":
            torch._foreach_clamp_min_(gradients, -self.value)
            torch._foreach_clamp_max_(gradients, self.value)
            return
        norms = torch.stack(torch._foreach_norm(gradients))
        if self.method == "norm":
            torch._foreach_mul_(gradients, list((self.value / norms).clamp(max=1.0).unbind()))
        else:
            torch._foreach_mul_(gradients, self.factor(torch.linalg.vector_norm(norms)))

    @property
    def is_global(self) -> bool:
        """Whether clipping is one factor for all gradients, which an optimizer can apply as it goes."""
        return self.method in ("autoclip", "global_norm")

    def factor(self, norm: Tensor) -> Tensor:
        """Return the factor for all gradients, a scalar. norm: of all together; autoclip remembers it."""
        limit: Tensor | float = self.value
        if self.history is not None:
            if self.history.device != norm.device:
                self.to(norm.device)
            self._calls += 1
            self.history.add(norm, self._calls)
            limit = self.history.percentile(10 * self.value)
        # torch.nn.utils.clip_grad_norm_ divides by the norm + 1e-6 too.
        return torch.where(norm.isfinite(), (limit / (norm + 1e-6)).clamp(max=1.0), 1.0)

    def to(self, device: torch.device | str) -> None:
        """Move the history to ``device``."""
        if self.history is not None:
            state, length = self.history.state_dict(), self.history._length
            self.history = NormHistory(length, device)
            self.history.load_state_dict(state)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the history; nothing for methods that have none."""
        return {} if self.history is None else self.history.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave, or begin anew where that is nothing."""
        if self.history is None:
            return
        self._calls = 0
        if state:
            self.history.load_state_dict(state)
            self._calls = int(state["seen"])
        else:
            self.history.clear()
