"""Preference losses as pure functions of log-probabilities, one value per pair.

Notation: a response's log-ratio is r = log π(y|x) − log π_ref(y|x), summed over response tokens and not
divided by length; the margin of a pair is h = r(chosen) − r(rejected). Nothing here reduces over pairs:
the trainer divides by the number of pairs of the whole optimiser step, so that splitting a step into
micro-batches of any sizes changes nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_studio.domain.round import TrainSettings
from dpo_studio.errors import BadInput


def preference_losses(log_ratios: Tensor, settings: TrainSettings) -> Tensor:
    """The loss that `settings` name, per pair.

    log_ratios: (pairs, 2), columns chosen and rejected. Returns (pairs,). Raises BadInput for an option
    that the named loss would ignore.
    """
    if settings.loss == "ipo":
        if settings.label_smoothing:
            raise BadInput(
                "label_smoothing: expected 0 with the ipo loss, which has no smoothed form,"
                f" found {settings.label_smoothing}; use the sigmoid loss"
            )
        return ipo_losses(margins(log_ratios), beta=settings.beta)
    return dpo_losses(margins(log_ratios), beta=settings.beta, label_smoothing=settings.label_smoothing)


def margins(log_ratios: Tensor) -> Tensor:
    """h = r(chosen) − r(rejected). log_ratios: (pairs, 2). Returns (pairs,)."""
    if log_ratios.dim() != 2 or log_ratios.shape[1] != 2:
        raise ValueError(f"log_ratios: expected the shape (pairs, 2), found {tuple(log_ratios.shape)}")
    return log_ratios[:, 0] - log_ratios[:, 1]


def dpo_losses(h: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε)·log σ(βh) − ε·log σ(−βh).

    ε = 0 is DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7). ε > 0 is conservative DPO (Mitchell 2023,
    "A note on DPO with noisy preferences"): the expected DPO loss when a share ε of labels is flipped.
    h: (pairs,). Returns (pairs,).
    """
    kept = -F.logsigmoid(beta * h)
    if not label_smoothing:
        return kept
    flipped = -F.logsigmoid(-beta * h)
    return (1 - label_smoothing) * kept + label_smoothing * flipped


def ipo_losses(h: Tensor, *, beta: float) -> Tensor:
    """(h − 1/(2β))², on summed log-probabilities (Azar et al. 2023, arXiv 2310.12036, eq. 17; β is its τ).

    Some trainers divide h by the response length first; the paper does not, and neither is done here.
    h: (pairs,). Returns (pairs,).
    """
    return (h - 1 / (2 * beta)) ** 2


def plackett_luce_losses(log_ratios: Tensor, *, beta: float) -> Tensor:
    """Negative log-likelihood of a whole ranking (Rafailov et al. 2023, appendix A.3, eq. 20).

    −Σ_k [βr_k − log Σ_{j≥k} exp(βr_j)], responses ordered best to worst. With two responses this is DPO.
    A ranking with ties has no such likelihood: the caller splits it into pairs.
    log_ratios: (prompts, responses), at least two responses. Returns (prompts,).
    """
    if log_ratios.dim() != 2 or log_ratios.shape[1] < 2:
        raise ValueError(
            f"log_ratios: expected the shape (prompts, at least 2 responses), found {tuple(log_ratios.shape)}"
        )
    rewards = beta * log_ratios
    # log Σ_{j≥k}: a cumulative logsumexp from the worst response upwards.
    not_better = torch.logcumsumexp(rewards.flip(1), dim=1).flip(1)
    return (not_better - rewards).sum(dim=1)


def sft_losses(chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood per token of the chosen response (the NLL term of Pang et al. 2024,
    arXiv 2404.19733, eq. 1, which keeps the chosen response likely).

    chosen_logps: (pairs,) summed. chosen_lengths: (pairs,) tokens, at least 1. Returns (pairs,).
    """
    return -chosen_logps / chosen_lengths
