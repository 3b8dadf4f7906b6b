"""From preference pairs to token ids that fit the model, and an account of what was cut or dropped.

Ids that the model sampled are used as they are. A prompt too long is cut from the left, responses from
the right and all at the same length, so that none wins by having been cut less. A pair or ranking that
cannot teach anything (a response without tokens, two equal responses) is dropped and counted, never
trained on.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import PreferencePair, SampledText
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.errors import BadInput

Encode = Callable[[Sequence[Message], SampledText], tuple[Sequence[int], Sequence[int]]]
"""(messages, response) → (prompt ids, response ids), as `ChatFormat.encode_pair`."""


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """The pairs that can be used, in their order, and what happened to the others."""

    pairs: tuple[TokenPair, ...]
    num_truncated: int
    dropped: dict[str, int]
    """Why → how many."""

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    def explain_drops(self) -> str:
        """E.g. "2 with an empty response, 1 with two equal responses"."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))


def encode_pairs(
    pairs: Sequence[PreferencePair],
    encode: Encode,
    *,
    max_length: int,
    vocabulary: int,
    soft_labels: bool = False,
) -> EncodedPairs:
    """Encode, cut to `max_length` tokens a sequence, and drop what is left without content.

    Without soft labels every choice counts as certain.
    """
    kept: list[TokenPair] = []
    dropped: Counter[str] = Counter()
    num_truncated = 0
    for pair in pairs:
        reason, encoded = _encode(pair, encode, vocabulary)
        if encoded is not None:
            if soft_labels:
                encoded = replace(encoded, chosen_probability=pair.chosen_probability)
            fitted = fit_pair(encoded, max_length)
            reason = _why_useless(fitted)
            if not reason:
                kept.append(fitted)
                num_truncated += fitted != encoded
        if reason:
            dropped[reason] += 1
    return EncodedPairs(tuple(kept), num_truncated, dict(dropped))


def fit_pair(pair: TokenPair, max_length: int) -> TokenPair:
    """Cut a pair so that none of its sequences exceeds `max_length` tokens.

    Responses keep at least half of the room, and all that a shorter prompt leaves. Returns the pair itself
    when it fits. max_length: at least 2.
    """
    if len(pair) <= max_length:
        return pair
    cap = max(max_length // 2, max_length - len(pair.prompt))
    chosen, *between, rejected = (response[:cap] for response in pair.responses)
    room = max_length - max(map(len, (chosen, *between, rejected)))
    prompt = pair.prompt[-room:]
    return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected, between=tuple(between))


def _encode(pair: PreferencePair, encode: Encode, vocabulary: int) -> tuple[str, TokenPair | None]:
    # A model's own bare EOS may be rejected (that teaches it to answer), but never chosen.
    *better, worst = pair.responses
    if not all(text.text.strip() for text in better) or not (worst.text.strip() or worst.token_ids):
        return "with an empty response", None
    try:
        encoded = [encode(pair.messages, text) for text in pair.responses]
    except BadInput:
        return "whose prompt the chat template refuses", None
    prompt = tuple(encoded[0][0])
    assert all(tuple(other) == prompt for other, _ in encoded), "one prompt must give one encoding"
    chosen, *between, rejected = (tuple(ids) for _, ids in encoded)
    fitting = TokenPair(prompt, chosen, rejected, between=tuple(between))
    if any(not 0 <= token < vocabulary for ids in (prompt, *fitting.responses) for token in ids):
        return "with token ids of another tokenizer", None
    return "", fitting


def _why_useless(pair: TokenPair) -> str:
    if not pair.prompt:
        return "with an empty prompt"
    if not all(pair.responses):
        return "with an empty response"
    if len(set(pair.responses)) < len(pair.responses):
        return "with two equal responses"
    return ""
