"""Sample answers of the starter in batches, with transformers alone; for the sheet, not for serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dpo_studio.starter.tokenizer import ASSISTANT, END, SYSTEM, USER, load_tokenizer

_CONTROL = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


class Sampler:
    """A loaded starter model."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: PreTrainedTokenizerFast = load_tokenizer(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(
        self, conversations: Sequence[Sequence[tuple[str, str]]], temperature: float, max_tokens: int = 220
    ) -> list[tuple[str, bool]]:
        """One answer per conversation and whether it ended by itself. Temperature 0 is greedy."""
        answers: list[tuple[str, bool]] = []
        for start in range(0, len(conversations), 64):
            answers += self._batch(
                [self._ids(turns) for turns in conversations[start : start + 64]], temperature, max_tokens
            )
        return answers

    def _ids(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        backend = self._tokenizer.backend_tokenizer
        ids: list[int] = []
        for role, text in turns:
            content = backend.encode(text.lower() if role == "user" else text, add_special_tokens=False).ids
            ids += [backend.token_to_id(_CONTROL[role]), *content, backend.token_to_id(END)]
        return [*ids, backend.token_to_id(ASSISTANT)]

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]], temperature: float, max_tokens: int) -> list[tuple[str, bool]]:
        width = max(map(len, prompts))
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        out = self._model.generate(
            input_ids=ids, attention_mask=(ids != pad).long(), max_new_tokens=max_tokens, pad_token_id=pad,
            eos_token_id=end, **sampling,
        )  # fmt: skip
        rows = out[:, width:].tolist()
        return [(str(self._tokenizer.decode(row, skip_special_tokens=True)), end in row) for row in rows]
