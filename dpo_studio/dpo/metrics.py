"""What is logged of a set of pairs, named as in TRL where TRL has it. Pure: tensors in, floats out.

Accuracies count a tie (both rewards equal, as before the first step) as one half, so that an untrained
policy shows 0.5 and not 0.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

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
MOMENT_NAMES = (_REWARD, _LENGTH, _REWARD + "²", _LENGTH + "²", _REWARD + "·" + _LENGTH)
"""Sums over both responses of all pairs, from which the correlation follows."""
SUM_NAMES = (*MEAN_NAMES, *MOMENT_NAMES)
# Below this share of its square sum, a variance is rounding.
_LEAST_VARIANCE = 1e-12


def preference_metrics(
    policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float
) -> dict[str, float]:
    """The metrics of a set of pairs, from summed log-probabilities.

    policy, reference, lengths: (pairs, 2), columns chosen and rejected; lengths in tokens. At least one pair.
    """
    sums = preference_sums(policy, reference, lengths, beta=beta)
    return metrics_of({name: float(value) for name, value in sums.items()}, len(policy))


def preference_sums(policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float) -> dict[str, Tensor]:
    """What `metrics_of` needs of a part of the pairs: scalars that add up, named by SUM_NAMES."""
    log_ratios = policy - reference
    rewards = beta * log_ratios
    margin = rewards[:, 0] - rewards[:, 1]
    columns = (
        rewards[:, 0],
        rewards[:, 1],
        margin,
        accuracies(margin),
        policy[:, 0],
        policy[:, 1],
        log_ratios[:, 0] / lengths[:, 0],
        log_ratios[:, 1] / lengths[:, 1],
        (log_ratios[:, 0] < 0).to(lengths.dtype),
        lengths[:, 0] - lengths[:, 1],
    )
    moments = (rewards, lengths, rewards.square(), lengths.square(), rewards * lengths)
    return {name: values.sum() for name, values in zip(SUM_NAMES, (*columns, *moments), strict=True)}


def metrics_of(sums: Mapping[str, float], num_pairs: int) -> dict[str, float]:
    """Metrics from sums over `num_pairs` pairs; every further name in `sums` becomes a mean too.

    `rewards/length_correlation` is Pearson's, between reward and length over all responses: near 1 when the
    policy is paid for length. 0 where one of both does not vary.
    """
    means = {name: total / num_pairs for name, total in sums.items() if name not in MOMENT_NAMES}
    correlation = _correlation([sums[name] for name in MOMENT_NAMES], 2 * num_pairs)
    return {**means, "rewards/length_correlation": correlation}


def _correlation(moments: Sequence[float], count: int) -> float:
    x, y, xx, yy, xy = moments
    variances = (xx - x * x / count, yy - y * y / count)
    if variances[0] <= _LEAST_VARIANCE * xx or variances[1] <= _LEAST_VARIANCE * yy:
        return 0.0
    return (xy - x * y / count) / math.sqrt(variances[0] * variances[1])


def accuracies(margin: Tensor) -> Tensor:
    """1 where the chosen response has the larger reward, 0.5 at a tie, 0 else. margin: (pairs,)."""
    return (margin.sign() + 1) / 2


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """`{"loss": …}` → `{"heldout/loss": …}`."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
