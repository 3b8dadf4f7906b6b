"""State of one request and of its samples while they are in the engine. No policy, no tensors."""

import random
from dataclasses import dataclass, field

from dpo_studio.domain.chat import FinishReason, GenerationRequest
from dpo_studio.serving.text_stream import TextStream


@dataclass(eq=False, slots=True)
class Sample:
    """One of the answers to a request."""

    index: int
    text: TextStream
    uniform: random.Random
    """Its own stream of random numbers, derived from (seed, index): company in the batch changes nothing."""
    token_ids: list[int] = field(default_factory=list)
    row: int = -1
    """Row of the cache while decoding, -1 before and after."""
    finish_reason: FinishReason | None = None


@dataclass(eq=False, slots=True)
class Group:
    """A request: its samples share the prompt, one prefill and one version."""

    request: GenerationRequest
    prompt_ids: list[int]
    seed: int
    slot: int
    """Adapter slot of the version, pinned for the whole life of the request."""
    max_tokens: int
    samples: list[Sample]
    num_prefilled: int = 0

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.prompt_ids)

    @property
    def is_live(self) -> bool:
        return self.request.priority == "live"

    @property
    def unfinished(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.finish_reason is None]


def sample_stream(seed: int, index: int) -> random.Random:
    """The random numbers of sample `index`: the same for the same pair, in every process and version."""
    return random.Random(f"{seed}/{index}")
