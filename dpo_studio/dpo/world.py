"""The processes that train together. One by default.

Each takes its share of the pairs; what they exchange are sums, so shares of any sizes are exact. Every
process must make the same calls in the same order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class World:
    """Rank and number of the processes, and how they add up a tensor."""

    rank: int = 0
    size: int = 1
    sum: Callable[[Tensor], Tensor] = _alone
    """Element-wise sum over all processes, the same on each. Returns a new tensor or its argument."""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part; may be empty. Interleaved, so that sorted items spread evenly."""
        return items[self.rank :: self.size]

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says yes."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=device)).item())
