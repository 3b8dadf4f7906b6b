"""Score pairs without training: the reference pass, and the held-out set."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair, most_responses, response_lengths
from dpo_studio.dpo.failures import TrainingCancelled
from dpo_studio.dpo.layouts import PADDED, Layout, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.losses import preference_losses
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.metrics import preference_metrics
from dpo_studio.dpo.world import World


@torch.no_grad()
def score_pairs(
    scorer: ResponseScorer,
    pairs: Sequence[TokenPair],
    budget: MemoryBudget,
    *,
    layout: Layout = PADDED,
    tail_weight: float = 1.0,
    world: World | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_scored: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Summed log-probabilities of every pair: (pairs, most responses) float64 on the CPU, best to worst.

    0 where a pair has fewer responses than another; two columns, chosen and rejected, when all are pairs.
    `on_scored` is told how many pairs of this process's share are done. Raises TrainingCancelled.
    """
    world = world or World()
    device = next(scorer.model.parameters()).device
    share = list(world.share(range(len(pairs))))

    def score(groups: list[list[int]]) -> Tensor:
        logps = torch.zeros(len(pairs), most_responses(pairs), dtype=torch.float64)
        num_scored = 0
        for group in groups:
            # Among several processes only the agreement below may end this: the others would wait.
            if world.size == 1 and should_stop():
                raise TrainingCancelled
            rows = [share[index] for index in group]
            scored = pair_logps(scorer, [pairs[row] for row in rows], layout, tail_weight=tail_weight)
            logps[rows, : scored.shape[1]] = scored.cpu()
            num_scored += len(group)
            on_scored(num_scored)
        return logps

    logps = budget.run([layout.size(pairs[row]) for row in share], score, layout=layout)
    if world.agree(should_stop(), device):
        raise TrainingCancelled
    if world.size == 1:
        return logps
    return world.sum(logps.to(device)).cpu()


def evaluate(
    policy: Tensor, reference: Tensor, pairs: Sequence[TokenPair], settings: TrainSettings
) -> dict[str, float]:
    """Loss and preference metrics from log-probabilities as `score_pairs` gives them. Empty for no pairs.

    The loss is the preference loss alone, without the SFT term: ln 2 means "no better than the reference".
    """
    if not pairs:
        return {}
    lengths = response_lengths(pairs)
    losses = preference_losses(policy - reference, settings, lengths, chosen_probabilities(pairs))
    return {
        "loss": float(losses.mean()),
        **preference_metrics(policy, reference, lengths, beta=settings.beta),
    }


def chosen_probabilities(pairs: Sequence[TokenPair]) -> Tensor | None:
    """(pairs,) float64; None when all are certain, which spares the loss its other half."""
    found = [pair.chosen_probability for pair in pairs]
    return None if all(p == 1 for p in found) else torch.tensor(found, dtype=torch.float64)
