"""Log-probabilities of response tokens under a causal language model.

The head runs on response positions only, in chunks: no (tokens, vocabulary) tensor exists for prompt or
padding positions, and none larger than one chunk outlives its use. The result equals log-softmax of the
model's own logits in float32, for every architecture: where a model transforms its logits after the head
(soft-capping, scaling), that is noticed and the model's own transformation is used.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpo_studio.dpo.batches import Batch

# 2^25 float32 logits are 128 MiB; a chunk of a 150k vocabulary is then 223 tokens.
CHUNK_ELEMENTS = 2**25


class ResponseScorer:
    """Scores batches with `model`: a transformers causal LM, or a PEFT model around one.

    Puts the model into eval mode: dropout, functional attention dropout included, must be off for policy
    and reference alike, or their ratio is noise. Gradients still flow to whatever requires them.
    """

    def __init__(self, model: nn.Module, *, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        self.model = model.eval()
        self._head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self._chunk_elements = chunk_elements
        self._is_head_plain: bool | None = None

    def token_logps(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """(tokens,) float32: log π(target | everything before it), in the order of `batch.targets`.

        With a temperature, of the distribution softmax(logits / temperature).
        """
        if self._is_head_plain is None:
            self._is_head_plain = self._check_head(batch.input_ids[:1, :2])
        if not self._is_head_plain:
            return _token_logps(self._own_logits(batch), batch.targets, temperature)
        hidden = self._hidden(batch)
        num_tokens = len(batch.targets)
        chunk_tokens = max(1, self._chunk_elements // self._vocabulary)
        if num_tokens <= chunk_tokens:
            return _token_logps(self._head(hidden), batch.targets, temperature)
        parts = [
            # Recomputing a chunk in the backward pass keeps one chunk of logits alive instead of all.
            checkpoint(self._score_chunk, h, t, temperature, use_reentrant=False, preserve_rng_state=False)
            for h, t in zip(
                torch.split(hidden, chunk_tokens), torch.split(batch.targets, chunk_tokens), strict=True
            )
        ]
        return torch.cat(parts)

    def sequence_logps(self, batch: Batch) -> Tensor:
        """(sequences,) float64: the sum of each response's token log-probabilities.

        Not divided by length: DPO compares sums. Summed in float64 because a thousand-nat float32 sum
        is only good to 1e-4, which is the size of early margins.
        """
        tokens = self.token_logps(batch).double()
        return torch.stack([part.sum() for part in torch.split(tokens, list(batch.lengths))])

    @property
    def _vocabulary(self) -> int:
        weight: Tensor = self._head.weight  # type: ignore[assignment]
        return int(weight.shape[0])

    def _score_chunk(self, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
        return _token_logps(self._head(hidden), targets, temperature)

    def _hidden(self, batch: Batch) -> Tensor:
        """(tokens, width): what the head would see at the predicting positions; the head runs on none."""
        seen: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            seen.append(hidden.reshape(-1, hidden.shape[-1])[batch.predict_at])
            return hidden[:, :0]

        self._forward(batch.input_ids, keep)
        return seen[0]

    def _own_logits(self, batch: Batch) -> Tensor:
        """(tokens, vocabulary): the model's final logits at the predicting positions alone."""

        def select(hidden: Tensor) -> Tensor:
            return hidden.reshape(-1, hidden.shape[-1])[batch.predict_at].unsqueeze(0)

        logits: Tensor = self._forward(batch.input_ids, select).logits
        return logits.squeeze(0)

    def _forward(self, input_ids: Tensor, select: Callable[[Tensor], Tensor]) -> Any:
        """Run the model with `select` between its last hidden states and its head."""
        hook = self._head.register_forward_pre_hook(lambda _, inputs: (select(inputs[0]), *inputs[1:]))
        try:
            # No mask and no positions: the stock causal path. Right padding is never attended to.
            return self.model(input_ids=input_ids, use_cache=False)
        finally:
            hook.remove()

    @torch.no_grad()
    def _check_head(self, input_ids: Tensor) -> bool:
        """Whether the model's logits are the head's output and nothing else."""
        raw: list[Tensor] = []
        hook = self._head.register_forward_hook(lambda _module, _inputs, output: raw.append(output.clone()))
        try:
            logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        finally:
            hook.remove()
        return len(raw) == 1 and torch.equal(raw[0].float(), logits.float())


def _token_logps(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """logits: (tokens, vocabulary) of any float type. targets: (tokens,). Returns (tokens,) float32."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return -F.cross_entropy(logits, targets, reduction="none")
