"""Logits → one token id per row. Pure: all randomness comes in as a function per row.

Top-p needs no sort: draw by inverse CDF and accept when the mass strictly above the drawn token's
probability is below top_p, else draw again. That is exactly the nucleus distribution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row is drawn."""

    temperature: float
    top_p: float
    top_k: int
    uniform: Callable[[], float]
    """Next number of the row's own stream, in [0, 1)."""


def sample_tokens(logits: torch.Tensor, rows: Sequence[RowSampling]) -> list[int | None]:
    """One id per row of `logits`: (batch, vocab). Temperature 0 takes the first largest, drawing nothing.

    None for a row whose logits hold NaN or +infinity: a broken version must not stop its neighbours.
    """
    assert logits.shape[0] == len(rows)
    scores = logits.float()
    top = scores.amax(-1, keepdim=True)
    is_sound: list[bool] = top.squeeze(-1).isfinite().tolist()
    best: list[int] = scores.argmax(-1).tolist()
    chosen = [token if sound else None for token, sound in zip(best, is_sound, strict=True)]
    drawn = [i for i, row in enumerate(rows) if row.temperature > 0 and is_sound[i]]
    if drawn:
        picked = [rows[i] for i in drawn]
        probabilities = _probabilities((scores - top)[drawn], picked)
        for i, token in zip(drawn, _draw(probabilities, picked), strict=True):
            chosen[i] = token
    return chosen


def _probabilities(scores: torch.Tensor, rows: Sequence[RowSampling]) -> torch.Tensor:
    """Softmax at each row's temperature over its top_k. scores: (batch, vocab), largest 0 in each row."""
    temperatures = torch.tensor([row.temperature for row in rows], device=scores.device)
    # Below 1e-4 the quotient overflows; the outcome is the argmax either way.
    scaled = scores / temperatures.clamp(min=1e-4).unsqueeze(-1)
    for i, row in enumerate(rows):
        if 0 < row.top_k < scaled.shape[-1]:
            kept, ids = scaled[i].topk(row.top_k)
            scaled[i] = torch.full_like(scaled[i], float("-inf")).scatter(0, ids, kept)
    return scaled.softmax(-1)


def _draw(probabilities: torch.Tensor, rows: Sequence[RowSampling]) -> list[int]:
    # float64: over 150k entries a float32 sum is off by more than the probability of a rare token.
    cumulative = probabilities.double().cumsum(-1)
    tokens = [-1] * len(rows)
    pending = list(range(len(rows)))
    while pending:
        index = torch.tensor(pending, device=probabilities.device)
        points = torch.tensor(
            [[rows[i].uniform()] for i in pending], dtype=torch.float64, device=probabilities.device
        )
        part = cumulative[index]
        # right=True steps over tokens of probability 0; the product may round up to the total itself.
        found = torch.searchsorted(part, points * part[:, -1:], right=True).squeeze(-1)
        found = torch.where(found < part.shape[-1], found, probabilities[index].argmax(-1))
        accepted = _in_nucleus(probabilities[index], found, [rows[i].top_p for i in pending])
        for i, token, is_accepted in zip(pending, found.tolist(), accepted.tolist(), strict=True):
            if is_accepted:
                tokens[i] = token
        pending = [i for i, is_accepted in zip(pending, accepted.tolist(), strict=True) if not is_accepted]
    return tokens


def _in_nucleus(probabilities: torch.Tensor, found: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """Whether each found token belongs to the smallest set of tokens with mass top_p. (batch,) bool."""
    if all(p >= 1.0 for p in top_p):
        return torch.ones_like(found, dtype=torch.bool)
    own = probabilities.gather(-1, found.unsqueeze(-1))
    above = (probabilities * (probabilities > own)).sum(-1)
    limits = torch.tensor(top_p, device=probabilities.device)
    return (above < limits) | (limits >= 1.0)
