"""How many tokens one forward may hold, padding included, and what to do when that was too many."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from dpo_studio.dpo.failures import TrainingFailed
from dpo_studio.dpo.layouts import PADDED, Layout

T = TypeVar("T")

# A CPU gains nothing from larger batches and loses by their padding: 1024 took 0.38 CPU-seconds for a step
# of the starter, 16384 (all 8 pairs at once) 0.44.
CPU_MAX_TOKENS = 1024
GPU_MAX_TOKENS = 16_384
_MAX_HALVINGS = 2


class MemoryBudget:
    """The token budget of micro-batches. Halved when memory runs out, twice at most, and kept so."""

    def __init__(self, max_tokens: int = CPU_MAX_TOKENS) -> None:
        self.max_tokens = max_tokens
        self.num_halvings = 0

    @classmethod
    def for_device(cls, device: torch.device) -> "MemoryBudget":
        """A good first budget."""
        return cls(CPU_MAX_TOKENS if device.type == "cpu" else GPU_MAX_TOKENS)

    def run(
        self, sizes: Sequence[int], work: Callable[[list[list[int]]], T], *, layout: Layout = PADDED
    ) -> T:
        """`work(groups)` over pairs of these sizes; called again with smaller groups when memory runs out.

        sizes: as `layout.size` counts them. `work` must start from nothing each time. Raises
        TrainingFailed when smaller does not help.
        """
        while True:
            groups = layout.plan(sizes, self.max_tokens)
            try:
                return work(groups)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler: until it ends, the traceback keeps the failed batch's tensors alive.
            tokens = [layout.num_tokens([sizes[index] for index in group]) for group in groups]
            self._halve([len(group) for group in groups], tokens)

    def _halve(self, pairs: list[int], tokens: list[int]) -> None:
        if self.num_halvings == _MAX_HALVINGS or max(pairs) == 1:
            raise TrainingFailed(
                f"Memory ran out with {max(pairs)} pair(s) of up to {max(tokens)} tokens at a time;"
                " use a shorter max_length, a smaller model, or more memory"
            )
        self.num_halvings += 1
        self.max_tokens = max(tokens) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device: the CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
