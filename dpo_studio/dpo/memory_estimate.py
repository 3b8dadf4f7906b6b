"""How much memory training will take beside the weights, before it takes any of it.

What autograd keeps per token is not derived from the architecture but measured: a few tokens are sent through
the adapted model and what is saved for the backward pass is counted. The rest is arithmetic. Good to a factor
of two; attention that keeps a square of the length (soft-capped scores) is underestimated for long pairs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpo_studio.dpo.batches import TokenPair, TokenSequence, pad_sequences
from dpo_studio.dpo.failures import TrainingFailed
from dpo_studio.dpo.fused_head import chunk_tokens_for
from dpo_studio.dpo.layouts import Layout
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MAX_HALVINGS, MemoryBudget
from dpo_studio.dpo.recompute import can_recompute

# Two lengths, so that what does not grow with them drops out.
_PROBE_LENGTHS = (32, 96)
# Beside what is kept, a layer's backward pass holds its own gradients for a while; and allocators keep holes:
# on a CPU, glibc's were measured at as much again (starter and a 32k-vocabulary shape, 1024 and 4096 tokens).
_SLACK = {"cpu": 2.0}
_OTHER_SLACK = 1.25
# Parameters of the adapter in float32: gradient, and the optimiser's two moments.
_STATES_EACH = 3
# Float32 copies of one chunk of logits that live at once.
_HEAD_COPIES = 3
_GB = 1e9
# Of a parameter in NF4: 4 bits, a byte of scale for each 64, four bytes of its scale for each 256 of those.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes, beside the weights and the adapter itself."""

    weights: int
    """Already there."""
    optimizer: int
    """Gradients and moments of what trains."""
    head_per_token: int
    """Logits of a token of one chunk."""
    head_tokens: int
    """The most tokens of one chunk."""
    per_token: int
    """Kept for the backward pass, per token of a micro-batch."""
    per_token_recomputed: int
    """The same with gradient checkpointing; equal where the model has none."""
    unpacked: int = 0
    """The largest layer of a 4-bit model while it is multiplied with."""
    nf4_saves: int = 0
    """What would be free if the model were held in 4 bits; 0 where that is not offered."""

    def total(self, tokens: int, *, is_recomputing: bool) -> int:
        """For micro-batches of so many tokens."""
        each = self.per_token_recomputed if is_recomputing else self.per_token
        head = self.head_per_token * min(tokens, self.head_tokens)
        return self.optimizer + self.unpacked + head + tokens * each

    def most_tokens(self, free: int, *, is_recomputing: bool) -> int:
        """The largest micro-batch that fits; 0 or less when none does."""
        each = self.per_token_recomputed if is_recomputing else self.per_token
        rest = free - self.optimizer - self.unpacked
        within_a_chunk = rest // (each + self.head_per_token)
        if within_a_chunk < self.head_tokens:
            return within_a_chunk
        return (rest - self.head_per_token * self.head_tokens) // each

    def explain(self, tokens: int, free: int) -> str:
        """For the log."""
        return (
            f"Memory: {self.weights / _GB:.2f} GB of weights; beside them, for {tokens} tokens at a time,"
            f" about {self.total(tokens, is_recomputing=False) / _GB:.2f} GB, or"
            f" {self.total(tokens, is_recomputing=True) / _GB:.2f} GB with gradient checkpointing;"
            f" {free / _GB:.2f} GB free"
        )


def estimate_memory(model: nn.Module) -> MemoryEstimate:
    """Measure on the adapted model. Leaves it, and its gradients, as they were."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    vocabulary = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    each = _saved_per_token(model, is_recomputing=False)
    num_layers = max(1, int(getattr(model.config.get_text_config(), "num_hidden_layers", 1)))  # type: ignore[union-attr, operator]
    recomputed = each
    if can_recompute(model):
        # One layer at a time has all of its own back.
        recomputed = _saved_per_token(model, is_recomputing=True) + each // num_layers
    device = next(model.parameters()).device.type
    slack = _SLACK.get(device, _OTHER_SLACK)
    return MemoryEstimate(
        weights=weights,
        optimizer=_STATES_EACH * trained,
        head_per_token=round(slack * 4 * _HEAD_COPIES * vocabulary),
        head_tokens=chunk_tokens_for(vocabulary),
        per_token=max(1, round(slack * each)),
        per_token_recomputed=max(1, round(slack * min(each, recomputed))),
        unpacked=_largest_unpacked(model),
        nf4_saves=_nf4_saves(model) if device == "cuda" else 0,
    )


def fit_budget(
    budget: MemoryBudget,
    estimate: MemoryEstimate,
    layout: Layout,
    pairs: Sequence[TokenPair],
    *,
    free: int,
    max_length: int,
    lora_rank: int,
) -> None:
    """Set the budget so that training will fit into `free` bytes; raises TrainingFailed saying what would.

    Smaller micro-batches come first, as far as running out of memory would take them; then gradient
    checkpointing. A micro-batch holds at least the longest pair.
    """
    longest = max(layout.num_tokens([layout.size(pair)]) for pair in pairs)
    fitting = estimate.most_tokens(free, is_recomputing=False)
    is_short = fitting < max(longest, budget.max_tokens // 2**MAX_HALVINGS)
    if is_short and estimate.per_token_recomputed < estimate.per_token:
        fitting = estimate.most_tokens(free, is_recomputing=True)
        budget.is_recomputing = True
    if fitting < longest:
        # What fits as it is fits at any length.
        num_rows = max(len(p.responses) for p in pairs if layout.num_tokens([layout.size(p)]) > fitting)
        raise TrainingFailed(_refusal(estimate, free, longest, num_rows, max_length, lora_rank))
    budget.max_tokens = min(budget.max_tokens, fitting)


def free_bytes(device: torch.device) -> int | None:
    """Memory that training may still take; None where nobody tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(reserved)
    known = [size for size in (_meminfo_bytes(), _cgroup_bytes()) if size is not None]
    return min(known, default=None)


def _refusal(
    estimate: MemoryEstimate, free: int, longest: int, num_rows: int, max_length: int, lora_rank: int
) -> str:
    need = estimate.total(longest, is_recomputing=True)
    said = (
        f"Training would take about {need / _GB:.2f} GB beside {estimate.weights / _GB:.2f} GB of weights,"
        f" for a longest pair of {longest} tokens, and {free / _GB:.2f} GB are free; "
    )
    offers = []
    tokens = estimate.most_tokens(free, is_recomputing=True)
    rest = free - estimate.total(4, is_recomputing=True) + estimate.optimizer
    rank = lora_rank * rest // max(1, estimate.optimizer)
    # In every layout a pair takes at most two sequences, and a ranking one for each of its responses.
    if tokens // num_rows >= 2:
        offers.append(f"a max_length of {min(tokens // num_rows, max_length - 1)}")
    elif rank >= 1:
        offers.append(f"a lora_rank of {min(rank, lora_rank - 1)} and short pairs")
    if need <= free + estimate.nf4_saves:
        offers.append("--dtype nf4 (the model in 4 bits)")
    return said + (f"{' or '.join(offers)} would fit" if offers else "use a smaller model or free memory")


def _largest_unpacked(model: nn.Module) -> int:
    """Bytes of the largest 4-bit layer's weights as its products see them."""
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    return max((s.shape.numel() * s.dtype.itemsize for s in states if s is not None), default=0)


def _nf4_saves(model: nn.Module) -> int:
    """Bytes that the linear layers, but the head, would give back, less the largest one unpacked again."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    frozen = [w for w in linear if not w.requires_grad and w.is_floating_point()]
    whole = [(w.numel(), w.element_size()) for w in frozen]
    saved = sum(count * (size - _NF4_BYTES) for count, size in whole)
    return max(0, int(saved - max((count * size for count, size in whole), default=0)))


def _saved_per_token(model: nn.Module, *, is_recomputing: bool) -> int:
    """Bytes that one more token of a sequence keeps alive until the backward pass."""
    device = next(model.parameters()).device
    scorer = ResponseScorer(model)
    scorer.is_recomputing = is_recomputing
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    sizes = []
    for length in _PROBE_LENGTHS:
        half = (1,) * (length // 2)
        batch = pad_sequences([TokenSequence(half, half)], device)
        with _counted(known) as saved:
            scorer.sequence_logps(batch)
            sizes.append(sum(saved.values()))
    return max(1, (sizes[1] - sizes[0]) // (_PROBE_LENGTHS[1] - _PROBE_LENGTHS[0]))


@contextmanager
def _counted(known: set[int]) -> Iterator[dict[int, int]]:
    """Address → bytes of every piece of memory that autograd saves within the block, but the known ones."""
    saved: dict[int, int] = {}
    # Kept, so that no address is given out twice.
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _meminfo_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        (found,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return int(found) * 1024
    except (OSError, ValueError):
        return None


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container may still take, of version 2 control groups."""
    try:
        most, used = (int((root / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (root / "memory.stat").read_text("ascii").splitlines())
        # Pages of files that nobody reads now are given up when memory is wanted.
        return most - used + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None
