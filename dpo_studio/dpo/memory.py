"""How many tokens one forward may hold, padding included, and what to do when that was too many."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from dpo_studio.dpo.failures import TrainingFailed
from dpo_studio.dpo.layouts import PADDED, Layout, Size

T = TypeVar("T")

# A CPU gains nothing from larger batches and loses by their padding: 1024 took 0.38 CPU-seconds for a step
# of the starter, 16384 (all 8 pairs at once) 0.44.
CPU_MAX_TOKENS = 1024
GPU_MAX_TOKENS = 16_384
MAX_HALVINGS = 2


class MemoryBudget:
    """The token budget of micro-batches. Halved when memory runs out, twice at most, and kept so.

    When that is not enough, training turns to gradient checkpointing, and keeps to it.
    """

    def __init__(self, max_tokens: int = CPU_MAX_TOKENS) -> None:
        self.max_tokens = max_tokens
        self.num_halvings = 0
        self.is_recomputing = False
        """Whether layers are computed again for the backward pass instead of kept."""

    @classmethod
    def for_device(cls, device: torch.device) -> "MemoryBudget":
        """A good first budget."""
        return cls(CPU_MAX_TOKENS if device.type == "cpu" else GPU_MAX_TOKENS)

    def state_dict(self) -> dict[str, int]:
        """Where it stands. Other micro-batches give other last bits, so a continued training needs it."""
        return {
            "max_tokens": self.max_tokens,
            "num_halvings": self.num_halvings,
            "is_recomputing": int(self.is_recomputing),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Stand where another budget stood."""
        self.max_tokens, self.num_halvings = state["max_tokens"], state["num_halvings"]
        self.is_recomputing = bool(state["is_recomputing"])

    def explain(self) -> str:
        """What shortness of memory has led to, as a sentence; empty when it has led to nothing."""
        if not self.num_halvings and not self.is_recomputing:
            return ""
        again = ", and layers were computed twice to keep less (gradient checkpointing)"
        return (
            f"Memory was short: at most {self.max_tokens} tokens were processed at a time"
            f"{again if self.is_recomputing else ''}."
        )

    def run(
        self,
        sizes: Sequence[Size],
        work: Callable[[list[list[int]]], T],
        *,
        layout: Layout = PADDED,
        can_recompute: bool = False,
    ) -> T:
        """`work(groups)` over pairs of these sizes; called again with smaller groups when memory runs out.

        sizes: as `layout.size` counts them. can_recompute: whether `work` heeds `is_recomputing`. `work` must
        start from nothing each time. Raises TrainingFailed when neither helps.
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
            self._save([len(group) for group in groups], tokens, can_recompute)

    def _save(self, pairs: list[int], tokens: list[int], can_recompute: bool) -> None:
        """Take the next measure against running out of memory, or give up."""
        if self.num_halvings < MAX_HALVINGS and max(pairs) > 1:
            self.num_halvings += 1
            self.max_tokens = max(tokens) // 2
        elif can_recompute and not self.is_recomputing:
            self.is_recomputing = True
        else:
            raise TrainingFailed(
                f"Memory ran out with {max(pairs)} pair(s) of up to {max(tokens)} tokens at a time;"
                " use a shorter max_length, a smaller model, or more memory"
            )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device: the CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
