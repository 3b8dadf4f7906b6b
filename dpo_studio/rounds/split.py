"""Which pairs are held out: decided by a hash of the prompt, the same in every round.

All pairs of one prompt fall on one side, whoever judged them and whenever, so a held-out prompt never
enters training. The one exception: when every pair there is would be held out (this happens with a
handful of prompts), there is nothing to train on, so that round holds out none.
"""

import hashlib
from collections.abc import Sequence

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import PreferencePair
from dpo_studio.files import canonical_json


def normalised_prompt(messages: Sequence[Message]) -> str:
    """The conversation with case and whitespace flattened: near copies are the same prompt."""
    return canonical_json([[m.role, " ".join(m.content.casefold().split())] for m in messages])


def is_heldout(messages: Sequence[Message], share: float) -> bool:
    """Whether this prompt belongs to the held-out `share` (0 to 1) of all prompts."""
    digest = hashlib.sha256(normalised_prompt(messages).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def split_pairs(
    pairs: Sequence[PreferencePair], share: float
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(training, held-out), in the given order. Training is empty only when `pairs` is."""
    heldout = [pair for pair in pairs if is_heldout(pair.messages, share)]
    if len(heldout) == len(pairs):
        return list(pairs), []
    return [pair for pair in pairs if not is_heldout(pair.messages, share)], heldout
