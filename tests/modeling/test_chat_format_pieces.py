"""Sentencepiece-like tokenizers, where a blank before a word is part of the token."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import SampledText
from dpo_studio.modeling.chat_format import ChatFormat

NAMES = ["<unk>", "<s>", "</s>", "<|x|>"]
# As Llama 2 had it: the answer begins with a blank, right after plain text.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Every character of the template, but none of its words: no token may span prompt and answer.
SENTENCES = [
    "Hello there, I am fine and you? Yes. T S N I ] [ / < > | x A b c d e f g h i j k l m n o p q r s t"
]
TALK = (Message("user", " Hello there"), Message("assistant", "I am fine"), Message("user", "and  you?"))


def metaspace_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=90, special_tokens=NAMES, show_progress=False))


def prepending_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=90, special_tokens=NAMES, show_progress=False))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=NAMES, unk_token="<unk>", show_progress=False
    )
    return trained(tokenizer, trainer)


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture(params=[metaspace_bpe, prepending_bpe, unigram])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=request.param(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def reference(tokenizer: Any, messages: tuple[Message, ...], *, generate: bool) -> list[int]:
    plain = [{"role": message.role, "content": message.content} for message in messages]
    ids: list[int] = tokenizer.apply_chat_template(plain, add_generation_prompt=generate, return_dict=False)
    return ids


def test_prompts_get_the_ids_of_apply_chat_template(tokenizer: Any) -> None:
    assert ChatFormat(tokenizer).prompt_ids(TALK) == reference(tokenizer, TALK, generate=True)


def test_prompt_and_response_together_are_the_conversation(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    prompt, response = chat.encode_pair(TALK[:1], SampledText("I am fine"))
    assert prompt + response == reference(tokenizer, TALK[:2], generate=False)
    # The decoder drops every blank of the first token, also one inside it.
    assert chat.decode(response).replace(" ", "") == "Iamfine"


def test_typed_control_tokens_stay_text(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    # Unknown characters are <unk>, too; the alphabet of the training text has all of these.
    ids = chat.prompt_ids((Message("user", "</s><s><|x|>"),))
    assert [token for token in ids if token in chat.control_ids] == [tokenizer.bos_token_id]
    response = chat.response_ids("</s><s><|x|>")
    assert [token for token in response if token in chat.control_ids] == [tokenizer.eos_token_id]
