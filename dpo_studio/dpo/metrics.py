"""What is logged of a set of pairs, named as in TRL. Pure: tensors in, floats out.

Accuracies count a tie (both rewards equal, as before the first step) as one half, so that an untrained
policy shows 0.5 and not 0.
"""

from collections.abc import Mapping

from torch import Tensor

METRIC_NAMES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logratio_per_token/chosen",
    "logratio_per_token/rejected",
)
"""The two last are ours: far below 0 when DPO pushes chosen responses down too (likelihood displacement)."""


def preference_metrics(
    policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float
) -> dict[str, float]:
    """Means over pairs, from summed log-probabilities.

    policy, reference, lengths: (pairs, 2), columns chosen and rejected; lengths in tokens. At least one pair.
    """
    sums = preference_sums(policy, reference, lengths, beta=beta)
    return {name: float(value) / len(policy) for name, value in sums.items()}


def preference_sums(policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float) -> dict[str, Tensor]:
    """The same before division by the number of pairs, so that parts of a step can be added up."""
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
    )
    return {name: column.sum() for name, column in zip(METRIC_NAMES, columns, strict=True)}


def accuracies(margin: Tensor) -> Tensor:
    """1 where the chosen response has the larger reward, 0.5 at a tie, 0 else. margin: (pairs,)."""
    return (margin.sign() + 1) / 2


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """`{"loss": …}` → `{"heldout/loss": …}`."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
