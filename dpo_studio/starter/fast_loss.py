"""The training loss of a Llama model, written for a CPU: the numbers of transformers in less time.

What saves: query/key/value and gate/up are one product each, activations are bfloat16 without autocast's
repeated casts, and softmax, loss and their gradient are one pass over the logits, which exist only where a
token counts. Assumes what the starter has: tied embeddings, no biases, as many key heads as query heads,
right padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from dpo_studio.starter.batches import Batch


def weighted_loss(
    model: LlamaForCausalLM,
    batch: Batch,
    reader: torch.nn.Linear | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy of the tokens that count.

    Returns that loss and the loss of the reader, which names the subject of each answer from the middle of
    the network; zero without a reader.
    """
    weights = batch.weights[:, 1:]
    keep = weights > 0
    middle, last = hidden_states(model, batch.ids)
    hidden = last[:, :-1][keep]
    share = weights[keep] / batch.weights[:, 1:].sum()
    table = model.model.embed_tokens.weight.bfloat16()
    heat = batch.heats[:, 1:][keep]
    loss: Tensor = _CrossEntropy.apply(hidden.bfloat16(), table, batch.ids[:, 1:][keep], share, heat)  # type: ignore[no-untyped-call]
    return loss, torch.zeros(()) if reader is None else _reader_loss(reader, middle, batch)


def reading_loss(model: LlamaForCausalLM, reader: torch.nn.Linear, batch: Batch) -> Tensor:
    """The reader's loss on prompts alone; costs only the lower half of the network and no head."""
    middle, _ = hidden_states(model, batch.ids, lower_half=True)
    return _named(reader, middle, _begins(batch), batch)


def _reader_loss(reader: torch.nn.Linear, middle: Tensor, batch: Batch) -> Tensor:
    """Half of it where an answer begins, before its first word, and half over all its words."""
    known = batch.subjects >= 0
    return 0.5 * _named(reader, middle, _begins(batch), batch) + 0.5 * _named(reader, middle, known, batch)


def _begins(batch: Batch) -> Tensor:
    begins = batch.subjects >= 0
    begins[:, 1:] &= batch.subjects[:, :-1] != batch.subjects[:, 1:]
    return begins


def _named(reader: torch.nn.Linear, middle: Tensor, where: Tensor, batch: Batch) -> Tensor:
    normed = functional.rms_norm(middle[where], middle.shape[-1:])
    return functional.cross_entropy(reader(normed), batch.subjects[where])


def hidden_states(model: LlamaForCausalLM, ids: Tensor, *, lower_half: bool = False) -> tuple[Tensor, Tensor]:
    """Hidden states halfway and, normalised, at the end.

    ids: (batch, seq) int64. Returns two of (batch, seq, width) float32.
    """
    rows, length = ids.shape
    heads = model.config.num_attention_heads
    eps = model.config.rms_norm_eps
    cos, sin = _rotation(length, model.config.hidden_size // heads)
    future = torch.full((length, length), float("-inf"), dtype=torch.bfloat16).triu(1)
    stream = middle = functional.embedding(ids, model.model.embed_tokens.weight)
    for number, layer in enumerate(model.model.layers, 1):
        attention, mlp = layer.self_attn, layer.mlp
        x = _norm(stream, layer.input_layernorm.weight, eps)
        joint = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (x @ joint).view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = _rotate(q, cos, sin) @ _rotate(k, cos, sin).mT * q.size(-1) ** -0.5 + future
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, -1)
        stream = stream + mixed @ _joined(attention.o_proj)
        x = _norm(stream, layer.post_attention_layernorm.weight, eps)
        gate, up = (x @ _joined(mlp.gate_proj, mlp.up_proj)).chunk(2, dim=-1)
        stream = stream + (functional.silu(gate) * up) @ _joined(mlp.down_proj)
        if 2 * number == len(model.model.layers):
            middle = stream
            if lower_half:
                break
    return middle, functional.rms_norm(stream, stream.shape[-1:], model.model.norm.weight, eps)


def _norm(stream: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(stream, stream.shape[-1:], weight, eps).bfloat16()


def _joined(*linears: torch.nn.Linear) -> Tensor:
    return torch.cat([linear.weight for linear in linears]).bfloat16().T


def _rotation(length: int, width: int) -> tuple[Tensor, Tensor]:
    speeds = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length).float(), speeds).repeat(1, 2)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class _CrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy whose gradient is computed on the way forward, in place of the logits.

    -sum_i share_i log softmax(heat_i z_i)[target_i], whose gradient to z_i is
    share_i heat_i (softmax(heat_i z_i) - onehot(target_i)).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, share: Tensor, heat: Tensor
    ) -> Tensor:
        logits = (hidden @ table.T).float().mul_(heat.unsqueeze(1))
        at = torch.arange(len(targets))
        logits -= logits.amax(dim=1, keepdim=True)
        picked = logits[at, targets]
        chances = logits.exp_()
        total = chances.sum(dim=1, keepdim=True)
        loss = ((total.squeeze(1).log() - picked) * share).sum()
        share = share * heat
        chances *= share.unsqueeze(1) / total
        chances[at, targets] -= share
        gradient = chances.bfloat16()
        ctx.save_for_backward(gradient @ table, gradient.T @ hidden)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        to_hidden, to_table = ctx.saved_tensors
        return to_hidden * grads[0], to_table * grads[0], None, None, None
