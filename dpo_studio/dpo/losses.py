"""Preference losses as pure functions of log-probabilities, one value per pair.

Notation: a response's log-ratio is r = log π(y|x) − log π_ref(y|x), summed over response tokens and not
divided by length unless the settings say so; the margin of a pair is h = r(chosen) − r(rejected). Nothing
here reduces over pairs: the trainer divides by the number of pairs of the whole optimiser step, so that
splitting a step into micro-batches of any sizes changes nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_studio.domain.round import TrainSettings
from dpo_studio.errors import BadInput


def preference_losses(
    log_ratios: Tensor,
    settings: TrainSettings,
    lengths: Tensor | None = None,
    chosen_probability: Tensor | None = None,
) -> Tensor:
    """The loss ℓ that `settings` name, per pair: p·ℓ(h) + (1−p)·ℓ(−h).

    log_ratios, lengths: (pairs, 2), columns chosen and rejected; lengths in tokens, needed only where the
    settings divide by them. chosen_probability: (pairs,), p; None for certainty. Returns (pairs,). Raises
    BadInput for an option that the named loss would ignore.

    A soft label p, the share of labelers for the chosen response, gives the expected loss of one labeler's
    vote, which is what storing the pair once per vote would give on average. It comes to:
    sigmoid: −p·log σ(βh) − (1−p)·log σ(−βh), conservative DPO with ε = 1−p; least at σ(βh) = p.
    robust with share ε of flips: [(p−ε)·ℓ(h) + (1−p−ε)·ℓ(−h)] / (1−2ε) of plain DPO's ℓ; at p = 1−ε, where
    the assumed flips explain all disagreement, plain DPO's ℓ(h).
    ipo: (h − (2p−1)/(2β))² + (1 − (2p−1)²)/(4β²), so the target shrinks to (p − ½)/β.
    hinge: p·max(0, 1−βh) + (1−p)·max(0, 1+βh), least at βh = 1 for every p above ½: it knows which, not how
    much.
    """
    losses = _certain_losses(log_ratios, settings, lengths)
    if chosen_probability is None:
        return losses
    turned = _certain_losses(log_ratios.flip(1), settings, None if lengths is None else lengths.flip(1))
    return chosen_probability * losses + (1 - chosen_probability) * turned


def _certain_losses(log_ratios: Tensor, settings: TrainSettings, lengths: Tensor | None) -> Tensor:
    """ℓ(h) of the named loss."""
    if settings.length_normalised:
        if lengths is None:
            raise ValueError("lengths: expected the shape (pairs, 2) to normalise by, found None")
        log_ratios = log_ratios / lengths
    h, beta, smoothing = margins(log_ratios), settings.beta, settings.label_smoothing
    if smoothing and settings.loss in ("ipo", "hinge"):
        raise BadInput(
            f"label_smoothing: expected 0 with the {settings.loss} loss, which has no smoothed form,"
            f" found {smoothing}; use the sigmoid loss"
        )
    if settings.loss == "ipo":
        return ipo_losses(h, beta=beta)
    if settings.loss == "hinge":
        return hinge_losses(h, beta=beta)
    if settings.loss == "robust":
        return robust_losses(h, beta=beta, label_smoothing=smoothing)
    return dpo_losses(h, beta=beta, label_smoothing=smoothing)


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


def robust_losses(h: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """[−(1−ε)·log σ(βh) + ε·log σ(−βh)] / (1−2ε), robust DPO (Chowdhury et al. 2024, arXiv 2403.00409).

    Unbiased: its expectation over labels flipped with probability ε is the DPO loss of the true labels.
    Unbounded below, unlike conservative DPO. h: (pairs,). Returns (pairs,).
    """
    kept, flipped = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge_losses(h: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 − βh) (SLiC's rank loss with DPO's rewards; Zhao et al. 2023, arXiv 2305.10425, eq. 1).

    h: (pairs,). Returns (pairs,).
    """
    return F.relu(1 - beta * h)


def ipo_losses(h: Tensor, *, beta: float) -> Tensor:
    """(h − 1/(2β))² (Azar et al. 2023, arXiv 2310.12036, eq. 17; β is its τ).

    On summed log-probabilities, as in the paper; the length-normalised form of some trainers is the same
    function of an h made from per-token means. h: (pairs,). Returns (pairs,).
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
