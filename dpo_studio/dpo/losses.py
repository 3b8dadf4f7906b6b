"""Preference losses as pure functions of log-probabilities, one value per pair or ranking.

Notation: a response's log-ratio is r = log π(y|x) − log π_ref(y|x), summed over response tokens and not
divided by length unless the settings say so; the margin of a pair is h = r(chosen) − r(rejected). Rankings
of more than two responses are rows of the same tensors with more columns, best to worst; a row with fewer
than another has the length 0 in the columns that it lacks. Nothing here reduces over pairs: the trainer
divides by the number of pairs of the whole optimiser step, so that splitting a step into micro-batches of
any sizes changes nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_studio.domain.round import LOSSES_WITH_SMOOTHING, TrainSettings
from dpo_studio.errors import BadInput


def preference_losses(
    log_ratios: Tensor,
    settings: TrainSettings,
    lengths: Tensor | None = None,
    chosen_probability: Tensor | None = None,
) -> Tensor:
    """The loss ℓ that `settings` name, per pair: p·ℓ(h) + (1−p)·ℓ(−h).

    log_ratios, lengths: (pairs, 2), columns chosen and rejected; for plackett_luce (pairs, responses).
    Lengths in tokens, needed only where the settings divide by them and where rows differ in their number of
    responses. chosen_probability: (pairs,), p, which must be 1 for more than two responses; None for
    certainty. Returns (pairs,). Raises BadInput for an option that the named loss would ignore, ValueError
    for rankings with a loss of pairs.

    A soft label p, the share of labelers for the chosen response, gives the expected loss of one labeler's
    vote, which is what storing the pair once per vote would give on average. It comes to:
    sigmoid: −p·log σ(βh) − (1−p)·log σ(−βh), conservative DPO with ε = 1−p; least at σ(βh) = p.
    robust with share ε of flips: [(p−ε)·ℓ(h) + (1−p−ε)·ℓ(−h)] / (1−2ε) of plain DPO's ℓ; at p = 1−ε, where
    the assumed flips explain all disagreement, plain DPO's ℓ(h).
    ipo: (h − (2p−1)/(2β))² + (1 − (2p−1)²)/(4β²), so the target shrinks to (p − ½)/β.
    hinge: p·max(0, 1−βh) + (1−p)·max(0, 1+βh), least at βh = 1 for every p above ½: it knows which, not how
    much.
    plackett_luce: as sigmoid.
    """
    losses = _certain_losses(log_ratios, settings, lengths)
    if chosen_probability is None:
        return losses
    turned_lengths = None if lengths is None else best_and_worst(lengths, lengths).flip(1)
    turned = _certain_losses(best_and_worst(log_ratios, lengths).flip(1), settings, turned_lengths)
    return chosen_probability * losses + (1 - chosen_probability) * turned


def _certain_losses(log_ratios: Tensor, settings: TrainSettings, lengths: Tensor | None) -> Tensor:
    """ℓ(h) of the named loss."""
    if settings.length_normalised:
        if lengths is None:
            raise ValueError("lengths: expected the shape of log_ratios to normalise by, found None")
        # Where there is no response, 0 / 1.
        log_ratios = log_ratios / lengths.clamp(min=1)
    beta, smoothing = settings.beta, settings.label_smoothing
    if smoothing and settings.loss not in LOSSES_WITH_SMOOTHING:
        raise BadInput(
            f"label_smoothing: expected 0 with the {settings.loss} loss, which has no smoothed form,"
            f" found {smoothing}; use the sigmoid loss"
        )
    if settings.loss == "plackett_luce":
        return plackett_luce_losses(log_ratios, beta=beta, lengths=lengths)
    h = margins(log_ratios)
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


def best_and_worst(values: Tensor, lengths: Tensor | None) -> Tensor:
    """(pairs, 2): the columns of every row's first and last response.

    values: (pairs, responses). lengths: the same shape, 0 where there is no response; None: none is missing.
    """
    if values.shape[1] == 2:
        return values
    if lengths is None:
        return values[:, [0, -1]]
    last = (lengths > 0).sum(dim=1, keepdim=True) - 1
    return torch.cat((values[:, :1], values.gather(1, last)), dim=1)


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


def plackett_luce_losses(log_ratios: Tensor, *, beta: float, lengths: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a whole ranking (Rafailov et al. 2023, appendix A.3, eq. 20).

    −Σ_k [βr_k − log Σ_{j≥k} exp(βr_j)], responses ordered best to worst. With two responses this is DPO.
    A sum of one term for each response but the worst, so a longer ranking weighs more. A ranking with ties
    has no such likelihood: the caller leaves it out or splits it into pairs.
    log_ratios: (prompts, responses), at least two responses. lengths: the same shape, 0 where there is no
    response; None: none is missing. Returns (prompts,).
    """
    if log_ratios.dim() != 2 or log_ratios.shape[1] < 2:
        raise ValueError(
            f"log_ratios: expected the shape (prompts, at least 2 responses), found {tuple(log_ratios.shape)}"
        )
    rewards = beta * log_ratios
    # Entry (k, j) is βr_j − βr_k: term k is the logsumexp of row k over k itself, where it is 0, and worse j.
    lead = rewards.unsqueeze(1) - rewards.unsqueeze(2)
    counts = torch.ones_like(lead, dtype=torch.bool).triu(diagonal=1)
    if lengths is not None:
        counts &= (lengths > 0).unsqueeze(1)
    # A response that is not there stands in no row but its own, whose term is log 1.
    counts |= torch.eye(lead.shape[1], dtype=torch.bool, device=lead.device)
    return lead.masked_fill(~counts, -torch.inf).logsumexp(dim=2).sum(dim=1)


def sft_losses(chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood per token of the chosen response (the NLL term of Pang et al. 2024,
    arXiv 2404.19733, eq. 1, which keeps the chosen response likely).

    chosen_logps: (pairs,) summed. chosen_lengths: (pairs,) tokens, at least 1. Returns (pairs,).
    """
    return -chosen_logps / chosen_lengths
