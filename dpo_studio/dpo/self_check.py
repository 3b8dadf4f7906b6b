"""Prove a layout on the model at hand before training with it.

An architecture whose attention the packed layouts do not understand gives wrong log-probabilities without
an error. So two pairs, one of them the longest there is (hence longer than any sliding window that can
matter), and where there are rankings one with the most responses, are scored in the layout and by the model's
own padded attention: log-probabilities and gradients must agree. The adapter is perturbed for this, because a
fresh one changes nothing and would hide mistakes in its gradient; afterwards the model is what it was, bit
by bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpo_studio.dpo.batches import Batch, TokenPair, TokenSequence, most_responses, pad_sequences
from dpo_studio.dpo.layouts import LADDER, Layout
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import is_out_of_memory
from dpo_studio.dpo.segment_attention import UnsupportedAttention

_FLOAT32_NATS = 1e-3
_FLOAT32_NATS_PER_TOKEN = 1e-5
_FLOAT32_GRADIENT = 1e-3
# Half precision: prefix sharing moved the log-probability of 139 tokens by 0.15 nats, a cut prompt that of
# a short response by 0.56. Where the model itself moves more under padding alone, four times that.
_HALF_NATS = 0.5
_HALF_GRADIENT = 0.1
_TIMES_NOISE = 4.0
_PERTURBATION = 0.02
# Weights fall so slowly that the last of many responses still counts.
_WEIGHT_FALL = 0.4
# Kinds of layers that attend; anything else (linear attention, state spaces) runs over the row's borders.
_ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """The layout to train in, and why it is not a cheaper one."""

    layout: Layout
    reasons: tuple[str, ...] = ()
    """A sentence for every rung passed over, without its full stop."""

    def explain(self) -> str:
        """For a round's record: what is used, and why nothing cheaper."""
        return ". ".join((f"Trained in the {self.layout.name} layout", *self.reasons)) + "."


@dataclass(frozen=True, slots=True)
class _Measured:
    logps: Tensor
    """(sequences,) float64."""
    gradient: Tensor
    """(parameters,) of the weighted sum."""


def choose_layout(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    ladder: Sequence[Layout] = LADDER,
    *,
    is_recomputing: bool = False,
) -> LayoutChoice:
    """The first layout of `ladder` that agrees with the last one, which is padded and taken as the truth.

    model: has parameters that require gradients (the adapter). pairs: all that will be scored, at least
    one. is_recomputing: as training will be. Leaves parameters and gradients as they were.
    """
    *rungs, truth = ladder
    sample = _sample(pairs)
    reasons: list[str] = []
    with _perturbed(model):
        scorer = ResponseScorer(model)
        scorer.is_recomputing = is_recomputing
        try:
            expected, noise = _padded_truth(scorer, sample, truth)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return LayoutChoice(truth, ("Memory ran out while the layouts were compared",))
        for layout in rungs:
            reason = _unsupported_layers(model) or _compare(scorer, sample, layout, expected, noise)
            if not reason:
                return LayoutChoice(layout, tuple(reasons))
            reasons.append(f"The {layout.name} layout was not used: {reason}")
    return LayoutChoice(truth, tuple(reasons))


def _sample(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """The longest pair, then the shortest: a row with a border in it. A single pair stands for both.

    Then the shortest of those with the most responses, if those two have fewer.
    """
    ordered = sorted(pairs, key=len)
    ends = [ordered[-1], ordered[0]]
    most = most_responses(ordered)
    if most_responses(ends) < most:
        ends.append(next(pair for pair in ordered if len(pair.responses) == most))
    return ends


def _unsupported_layers(model: nn.Module) -> str:
    """Names layers that no attention mask can keep apart; empty when all attend."""
    kinds = set(getattr(model.config, "layer_types", None) or ())
    strange = sorted(kinds - _ATTENTION_KINDS)
    return f"the model has layers of the kind {', '.join(strange)}" if strange else ""


def _padded_truth(
    scorer: ResponseScorer, sample: Sequence[TokenPair], truth: Layout
) -> tuple[_Measured, _Measured | None]:
    """What the stock attention says; in half precision also what it says under more padding.

    A pair at a time: the longest one alone is as much as training will have to hold.
    """
    device = next(scorer.model.parameters()).device
    counts = [len(pair.responses) for pair in sample]
    expected = _measure(scorer, [truth.lay_out([pair], device) for pair in sample], counts)
    if not _is_half(scorer.model):
        return expected, None
    padded = [pad_sequences(_with_padding(pair), device) for pair in sample]
    return expected, _measure(scorer, padded, counts)


def _with_padding(pair: TokenPair) -> list[TokenSequence]:
    """Its sequences, and one that is longer than all of them."""
    longest = max(pair.sequences, key=len)
    wider = TokenSequence(longest.prompt, (*longest.response, *longest.response[:1] * 17))
    return [*pair.sequences, wider]


def _compare(
    scorer: ResponseScorer,
    sample: Sequence[TokenPair],
    layout: Layout,
    expected: _Measured,
    noise: _Measured | None,
) -> str:
    """Why `layout` does not do, as the end of a sentence; empty when it does."""
    try:
        device = next(scorer.model.parameters()).device
        # A ranking beside the two ends has a row of its own: all at once could be more than training holds.
        rows = [row for row in (sample[:2], sample[2:]) if row]
        counts = [sum(len(pair.responses) for pair in row) for row in rows]
        found = _measure(scorer, [layout.lay_out(row, device) for row in rows], counts)
    except UnsupportedAttention as error:
        return str(error)
    except (RuntimeError, MemoryError, ValueError, TypeError, IndexError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        return f"it ended in {type(error).__name__}: {first_line[:200]}"
    lengths = [float(len(s.response)) for pair in sample for s in pair.sequences]
    gap = (found.logps - expected.logps).abs()
    allowed = torch.tensor(lengths, dtype=torch.float64) * _FLOAT32_NATS_PER_TOKEN + _FLOAT32_NATS
    slope_gap, slope_allowed = _relative(found.gradient, expected.gradient), _FLOAT32_GRADIENT
    if noise is not None:
        allowed = (_TIMES_NOISE * (noise.logps - expected.logps).abs()).clamp(min=_HALF_NATS)
        slope_noise = _TIMES_NOISE * _relative(noise.gradient, expected.gradient)
        slope_allowed = max(_HALF_GRADIENT, slope_noise)
    # NaN compares false with everything, and must count as a difference.
    if not bool((gap <= allowed).all()):
        return f"its log-probabilities differ from those of padded attention by {float(gap.max()):.3g} nats"
    if not slope_gap <= slope_allowed:
        return f"its gradient differs from that of padded attention by {slope_gap:.3g} of its size"
    return ""


def _measure(scorer: ResponseScorer, batches: Sequence[Batch], counts: Sequence[int]) -> _Measured:
    """The batches together; `counts` says how many of each one's sequences, the first, are the sample's."""
    parts: list[_Measured] = []
    for batch, count in zip(batches, counts, strict=True):
        logps = scorer.sequence_logps(batch)[:count]
        parts.append(_finish(scorer, logps, first=sum(len(part.logps) for part in parts)))
    return _Measured(
        torch.cat([part.logps for part in parts]), torch.stack([part.gradient for part in parts]).sum(0)
    )


def _finish(scorer: ResponseScorer, logps: Tensor, *, first: int = 0) -> _Measured:
    """The gradient of the weighted sum, without touching the parameters' own gradients.

    first: how many responses of the sample come before these.
    """
    parameters = [p for p in scorer.model.parameters() if p.requires_grad]
    numbers = torch.arange(first, first + len(logps), dtype=logps.dtype, device=logps.device)
    # Unequal, so that errors of two responses cannot cancel in the gradient.
    weights = (1 - 2 * (numbers % 2)) / (1 + _WEIGHT_FALL * numbers)
    weighted = (logps * weights).sum()
    gradients = torch.autograd.grad(weighted, parameters, allow_unused=True)
    flat = [gradient.detach().flatten().double().cpu() for gradient in gradients if gradient is not None]
    return _Measured(logps.detach().cpu(), torch.cat(flat))


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def _is_half(model: nn.Module) -> bool:
    return any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())


@contextmanager
def _perturbed(model: nn.Module) -> Iterator[None]:
    """Add noise to what trains, the same every time, and put the very bits back afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    was_training = model.training
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in trained:
                noise = torch.randn(parameter.shape, generator=generator) * _PERTURBATION
                parameter.add_(noise.to(parameter.device, parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
        model.train(was_training)
