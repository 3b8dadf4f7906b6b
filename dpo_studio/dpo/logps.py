"""Log-probabilities of response tokens under a causal language model.

The head runs on response positions only, in chunks: no (tokens, vocabulary) tensor exists for prompt or
padding positions, and none larger than one chunk outlives its use. The result equals log-softmax of the
model's own logits in float32, for every architecture: a soft-cap or scale behind the head is taken from the
model's config and checked against the model's own logits; a model that does anything else computes its
logits itself. A frozen linear head is fused with the softmax (`fused_head`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpo_studio.dpo.batches import Batch
from dpo_studio.dpo.fused_head import LogitTransform, fused_token_logps
from dpo_studio.dpo.recompute import Context, layers_recomputed
from dpo_studio.dpo.segment_attention import segments_enabled

# Where the head is not fused: 2^25 float32 logits are 128 MiB, 223 tokens of a 150k vocabulary.
_CHUNK_ELEMENTS = 2**25


class ResponseScorer:
    """Scores batches with `model`: a transformers causal LM, or a PEFT model around one.

    Puts the model into eval mode: dropout, functional attention dropout included, must be off for policy
    and reference alike, or their ratio is noise. Gradients still flow to whatever requires them.
    """

    def __init__(self, model: nn.Module, *, chunk_tokens: int | None = None) -> None:
        """chunk_tokens: positions the head runs on at a time; None for a good number."""
        self.model = model.eval()
        self._head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self._chunk_tokens = chunk_tokens
        self._transform: LogitTransform | None = None
        self._is_head_known: bool | None = None
        self.is_recomputing = False
        """Whether a backward pass computes layers again instead of finding what they kept."""

    def token_logps(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """(tokens,) float32: log π(target | everything before it), in the order of `batch.targets`.

        With a temperature, of the distribution softmax(logits / temperature).
        """
        if self._is_head_known is None:
            self._transform = self._find_transform(batch.input_ids[:1, :2])
            self._is_head_known = self._transform is not None and _is_frozen_linear(self._head)
        if self._transform is None:
            return _token_logps(self._own_logits(batch), batch.targets, temperature)
        hidden = self._hidden(batch)
        if self._is_head_known:
            return fused_token_logps(
                hidden,
                self._head.weight,  # type: ignore[arg-type]
                batch.targets,
                bias=self._head.bias,  # type: ignore[arg-type]
                transform=self._transform,
                temperature=temperature,
                chunk_tokens=self._chunk_tokens,
            )
        chunk_tokens = self._chunk_tokens or max(1, _CHUNK_ELEMENTS // self._vocabulary)
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
        assert self._transform is not None
        return _token_logps(self._transform.apply(self._head(hidden)), targets, temperature)

    def _hidden(self, batch: Batch) -> Tensor:
        """(tokens, width): what the head would see at the predicting positions; the head runs on none."""
        seen: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            seen.append(hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.predict_at))
            return hidden[:, :0]

        self._forward(batch, keep)
        return seen[0]

    def _own_logits(self, batch: Batch) -> Tensor:
        """(tokens, vocabulary): the model's final logits at the predicting positions alone."""

        def select(hidden: Tensor) -> Tensor:
            return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.predict_at).unsqueeze(0)

        logits: Tensor = self._forward(batch, select).logits
        return logits.squeeze(0)

    def _forward(self, batch: Batch, select: Callable[[Tensor], Tensor]) -> Any:
        """Run the model with `select` between its last hidden states and its head."""
        hook = self._head.register_forward_pre_hook(lambda _, inputs: (select(inputs[0]), *inputs[1:]))
        try:
            if batch.segments is None:
                # No mask and no positions: the stock causal path. Right padding is never attended to.
                with self._recomputed(nullcontext):
                    return self.model(input_ids=batch.input_ids, use_cache=False)
            enabled = partial(segments_enabled, self.model)
            # A layer that is computed again must attend as it did the first time.
            with enabled(), self._recomputed(enabled):
                return self.model(
                    input_ids=batch.input_ids,
                    position_ids=batch.position_ids,
                    use_cache=False,
                    dpo_segments=batch.segments,
                )
        finally:
            hook.remove()

    def _recomputed(self, backwards: Context) -> AbstractContextManager[None]:
        return layers_recomputed(self.model, backwards) if self.is_recomputing else nullcontext()

    @torch.no_grad()
    def _find_transform(self, input_ids: Tensor) -> LogitTransform | None:
        """What turns the head's output into the model's logits; None when that is not known."""
        raw: list[Tensor] = []
        hook = self._head.register_forward_hook(lambda _module, _inputs, output: raw.append(output.clone()))
        try:
            logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        finally:
            hook.remove()
        if len(raw) != 1:
            return None
        if torch.equal(raw[0].float(), logits.float()):
            return LogitTransform()
        transform = _configured_transform(self.model.config)
        # Half-precision models round their capped logits; here they stay in float32.
        tolerance = 8 * torch.finfo(logits.dtype).eps
        found = transform.apply(raw[0].float())
        is_same = torch.allclose(found, logits.float(), rtol=tolerance, atol=tolerance)
        return transform if is_same else None


def _configured_transform(config: Any) -> LogitTransform:
    """Named as by Gemma 2 (`final_logit_softcapping`), Granite (`logits_scaling`), Cohere (`logit_scale`)."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None))


def _is_frozen_linear(head: nn.Module) -> bool:
    """Whether its weights can be used directly: not adapted, quantised, sharded or trained."""
    return (
        type(head) is nn.Linear
        and type(head.weight.data) is Tensor
        and not any(parameter.requires_grad for parameter in head.parameters())
    )


def _token_logps(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """logits: (tokens, vocabulary) of any float type. targets: (tokens,). Returns (tokens,) float32."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return -F.cross_entropy(logits, targets, reduction="none")
