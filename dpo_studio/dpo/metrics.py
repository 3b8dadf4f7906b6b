"""What is logged of a set of pairs, named as in TRL where TRL has it. Pure: tensors in, floats out.

Accuracies count a tie (both rewards equal, as before the first step) as one half, so that an untrained
policy shows 0.5 and not 0. Of a ranking of more than two responses, "chosen" is the best and "rejected" the
worst, and the margin lies between these two; its accuracy is the share of its ordered pairs, N·(N−1)/2 of
them, whose better response has the larger reward. A ranking counts as one pair in every mean.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from dpo_studio.dpo.losses import best_and_worst

MEAN_NAMES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logratio_per_token/chosen",
    "logratio_per_token/rejected",
    "logratio_negative/chosen",
    "lengths/gap",
)
"""Means over pairs. Ours are, in this order: log-ratios per token, far below 0 when DPO pushes chosen
responses down too (likelihood displacement); the share of pairs with a chosen response that has become less
likely; and the tokens that chosen responses have beyond rejected ones."""
_REWARD, _LENGTH = "reward", "length"
MOMENT_NAMES = ("responses", _REWARD, _LENGTH, _REWARD + "²", _LENGTH + "²", _REWARD + "·" + _LENGTH)
"""Number of the responses of all pairs, and sums over them, from which the correlation follows."""
SUM_NAMES = (*MEAN_NAMES, *MOMENT_NAMES)
# Below this share of its square sum, a variance is rounding.
_LEAST_VARIANCE = 1e-12


def preference_metrics(
    policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float
) -> dict[str, float]:
    """The metrics of a set of pairs, from summed log-probabilities.

    policy, reference, lengths: (pairs, responses), columns best to worst, which are chosen and rejected where
    there are two; lengths in tokens. Where a pair has fewer responses all three are 0. At least one pair.
    """
    sums = preference_sums(policy, reference, lengths, beta=beta)
    return metrics_of({name: float(value) for name, value in sums.items()}, len(policy))


def preference_sums(policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float) -> dict[str, Tensor]:
    """What `metrics_of` needs of a part of the pairs: scalars that add up, named by SUM_NAMES."""
    log_ratios = policy - reference
    rewards = beta * log_ratios
    is_there = (lengths > 0).to(lengths.dtype)
    ends = [best_and_worst(values, lengths) for values in (rewards, policy, log_ratios, lengths)]
    (best, worst), (logp, worst_logp), (ratio, worst_ratio), (tokens, worst_tokens) = (
        end.unbind(dim=1) for end in ends
    )
    columns = (
        best,
        worst,
        best - worst,
        _order_accuracies(rewards, is_there),
        logp,
        worst_logp,
        ratio / tokens,
        worst_ratio / worst_tokens,
        (ratio < 0).to(lengths.dtype),
        tokens - worst_tokens,
    )
    moments = (is_there, rewards, lengths, rewards.square(), lengths.square(), rewards * lengths)
    return {name: values.sum() for name, values in zip(SUM_NAMES, (*columns, *moments), strict=True)}


def metrics_of(sums: Mapping[str, float], num_pairs: int) -> dict[str, float]:
    """Metrics from sums over `num_pairs` pairs; every further name in `sums` becomes a mean too.

    `rewards/length_correlation` is Pearson's, between reward and length over all responses: near 1 when the
    policy is paid for length. 0 where one of both does not vary.
    """
    means = {name: total / num_pairs for name, total in sums.items() if name not in MOMENT_NAMES}
    correlation = _correlation([sums[name] for name in MOMENT_NAMES])
    return {**means, "rewards/length_correlation": correlation}


def _correlation(moments: Sequence[float]) -> float:
    count, x, y, xx, yy, xy = moments
    variances = (xx - x * x / count, yy - y * y / count)
    if variances[0] <= _LEAST_VARIANCE * xx or variances[1] <= _LEAST_VARIANCE * yy:
        return 0.0
    return (xy - x * y / count) / math.sqrt(variances[0] * variances[1])


def accuracies(margin: Tensor) -> Tensor:
    """1 where the better response has the larger reward, 0.5 at a tie, 0 else. margin: of any shape."""
    return (margin.sign() + 1) / 2


def _order_accuracies(rewards: Tensor, is_there: Tensor) -> Tensor:
    """(pairs,): of every row's ordered pairs, the share in the right order. Both (pairs, responses)."""
    gaps = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    ordered = (is_there.unsqueeze(2) * is_there.unsqueeze(1)).triu(diagonal=1)
    return (accuracies(gaps) * ordered).sum(dim=(1, 2)) / ordered.sum(dim=(1, 2))


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """`{"loss": …}` → `{"heldout/loss": …}`."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
