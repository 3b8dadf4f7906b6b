"""Messages ↔ token ids: ONE function for serving and for training.

The chat template decides the layout; what people type never becomes a control token. Every added token of
the tokenizer counts as one (not only those marked special), because templates steer with either kind.
How: contents are rendered with an invisible character inside whatever could begin a control token, so each
literal control token in the rendered text is the template's own. Those are given secret names, the invisible
characters are taken out again, and a copy of the tokenizer that knows only the secret names encodes the
text in one piece. Transformations by the template (`trim`, `lower`) are honoured.

Refused: tokenizers without a fast backend or a chat template (ModelError), conversations that the template
refuses (BadInput).
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import SampledText
from dpo_studio.errors import BadInput, ModelError

# The last two private-use code points; typed ones are dropped, so neither can be forged.
_SHIELD = "\U0010fffd"
_MARK = "\U0010fffc"
_ANCHOR = f"{_MARK}anchor{_MARK}"
_PROBE_TEXT = "zqxj"


class ChatFormat:
    """How one tokenizer writes conversations. Holds no state between calls; safe to share between threads."""

    def __init__(self, tokenizer: Any, *, extra_eos_ids: Iterable[int] = ()) -> None:
        """`extra_eos_ids`: ends of a turn known from the model's generation config."""
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ModelError(
                f"tokenizer: expected one with a tokenizer.json, found {type(tokenizer).__name__} without; "
                "convert it with tokenizer.save_pretrained of a fast tokenizer"
            )
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._encoder = _ControlEncoder(self._backend)
        self._bos_id: int | None = tokenizer.bos_token_id
        self._adds_bos = self._bos_id in self._backend.encode("x").ids[:1]
        self._turn_end = self._find_turn_end()
        known = {tokenizer.eos_token_id, self._encoder.control_id(self._turn_end), *extra_eos_ids}
        self._eos_ids = frozenset(token for token in known if token is not None)
        if not self._eos_ids:
            raise ModelError("tokenizer: expected an end-of-turn token, found none; set eos_token")
        self._hidden = self._eos_ids | self._encoder.special_ids

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self._eos_ids

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that only the template (or the model) may write, never a person."""
        return self._encoder.control_ids

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to where the model's answer begins; one BOS where one is used."""
        ids = self._encoder.encode(self._render(messages, generate=True))
        while len(ids) > 1 and ids[0] == ids[1] == self._bos_id:
            del ids[0]
        if self._adds_bos and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)  # type: ignore[arg-type]
        return ids

    def response_ids(self, text: str) -> list[int]:
        """Ids of `text` as the model would have sampled it after any prompt, ended by EOS."""
        prompt, tail = self._response_tail(text)
        head, ids = self._encoder.encode(prompt), self._encoder.encode(prompt + tail)
        # Where a token would span the border, the model cannot have sampled it: then the tail by itself.
        is_apart = ids[: len(head)] == head
        ids = ids[len(head) :] if is_apart else self._encoder.encode(_ANCHOR + tail)
        for position, token in enumerate(ids):
            if token in self._eos_ids:
                return ids[: position + 1]
        return [*ids, self._final_eos()]

    def encode_pair(self, messages: Sequence[Message], response: SampledText) -> tuple[list[int], list[int]]:
        """(prompt ids, response ids). Sampled ids are used as they are; other text is encoded."""
        ids = response.token_ids
        return self.prompt_ids(messages), self.response_ids(response.text) if ids is None else list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, without control tokens."""
        kept = [token for token in ids if token not in self._hidden]
        return str(self._backend.decode(kept, skip_special_tokens=False))

    def is_hidden(self, token: int) -> bool:
        """Whether `decode` leaves this id out."""
        return token in self._hidden

    def render_debug(self, messages: Sequence[Message], response: SampledText | None = None) -> str:
        """The token pieces one by one: prompt in grey, trained response in green (ANSI colours)."""
        prompt = self.prompt_ids(messages)
        answer = [] if response is None else self.encode_pair(messages, response)[1]
        pieces = [("\x1b[90m", token) for token in prompt] + [("\x1b[32m", token) for token in answer]
        return "|".join(f"{colour}{self._backend.id_to_token(token)}\x1b[0m" for colour, token in pieces)

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        shielded = [{"role": m.role, "content": self._encoder.shield(m.content)} for m in messages]
        try:
            rendered = self._tokenizer.apply_chat_template(
                shielded, tokenize=False, add_generation_prompt=generate
            )
        except TemplateError as error:
            raise BadInput(
                f"messages: this model's chat template refuses the conversation ({error}); "
                "leave out the system message or change the order of turns"
            ) from error
        return str(rendered)

    def _response_tail(self, text: str) -> tuple[str, str]:
        """A short prompt as rendered, and what the template writes after it for an answer of `text`."""
        asked = (Message("user", "x"),)
        prompt = self._render(asked, generate=True)
        full = self._render((*asked, Message("assistant", text)), generate=False)
        if full.startswith(prompt):
            return prompt, full[len(prompt) :]
        # The template writes finished turns otherwise than it opens new ones (thinking models do).
        return prompt, self._encoder.shield(text) + (self._turn_end or "")

    def _find_turn_end(self) -> str | None:
        """The control token that the template puts after an answer, None when it puts none."""
        try:
            turns = (Message("user", "x"), Message("assistant", _PROBE_TEXT))
            _, found, after = self._render(turns, generate=False).rpartition(_PROBE_TEXT)
        except (BadInput, ValueError) as error:
            raise ModelError(
                "tokenizer: expected a chat template that can write a question and an answer, found one that "
                f"cannot ({error.__cause__ or error}); give one with --chat-template FILE"
            ) from error
        return self._encoder.first_control(after.lstrip()) if found else None

    def _final_eos(self) -> int:
        eos: int | None = self._tokenizer.eos_token_id
        return min(self._eos_ids) if eos is None else eos


class _ControlEncoder:
    """A tokenizer that reads control tokens by secret names only."""

    def __init__(self, backend: Tokenizer) -> None:
        added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        # Added runs of blanks or newlines (Gemma has them) control nothing and stay ordinary text.
        controls = {token.content: (i, token) for i, token in added.items() if token.content.strip()}
        blanks = [(i, token) for i, token in added.items() if not token.content.strip()]
        self._ids = {content: i for content, (i, _) in controls.items()}
        self.control_ids = frozenset(self._ids.values())
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._pattern = _any_of(controls)
        firsts = "".join({re.escape(content.strip()[0]) for content in controls})
        self._shieldable = re.compile(f"([{firsts}])" if firsts else r"(?!)", re.IGNORECASE)
        self._copy = Tokenizer.from_str(_without_added_tokens(backend.to_str(), frozenset(self._ids)))
        self._secrets = {content: f"{_MARK}{i}{_MARK}" for content, (i, _) in controls.items()}
        self._copy.add_tokens([_renamed(token, token.content) for _, token in blanks])
        self._copy.add_tokens(
            [_renamed(token, self._secrets[token.content]) for _, token in controls.values()]
        )
        self._copy.add_tokens([AddedToken(_ANCHOR, normalized=False)])
        names = {token.content: i for i, token in blanks}
        names |= {self._secrets[content]: i for content, i in self._ids.items()}
        self._original = {self._copy.token_to_id(name): i for name, i in names.items()}
        self._anchor = self._copy.token_to_id(_ANCHOR)

    def shield(self, text: str) -> str:
        """`text` with an invisible character inside everything that could be read as a control token."""
        cleaned = text.replace(_SHIELD, "").replace(_MARK, "")
        return self._shieldable.sub(rf"\1{_SHIELD}", cleaned)

    def encode(self, rendered: str) -> list[int]:
        """Ids of rendered text. Adds nothing; an anchor is left out."""
        named = self._pattern.sub(lambda match: self._secrets[match.group()], rendered)
        ids = self._copy.encode(named.replace(_SHIELD, ""), add_special_tokens=False).ids
        return [self._original.get(i, i) for i in ids if i != self._anchor]

    def first_control(self, rendered: str) -> str | None:
        """The control token at the very start of `rendered`."""
        match = self._pattern.match(rendered)
        return match.group() if match else None

    def control_id(self, content: str | None) -> int | None:
        """Id of a control token by its text."""
        return None if content is None else self._ids[content]


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(contents, key=len, reverse=True)
    if not longest_first:
        return re.compile(r"(?!)")
    # A shield right behind it marks a control token of one character as typed.
    return re.compile(f"(?:{'|'.join(re.escape(content) for content in longest_first)})(?!{_SHIELD})")


def _renamed(token: AddedToken, name: str) -> AddedToken:
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )


def _without_added_tokens(state: str, names: frozenset[str]) -> str:
    """Serialised tokenizer that adds nothing and in which the named tokens cannot arise from plain text."""
    value = json.loads(state)
    value |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    model = value["model"]
    vocabulary = model["vocab"]
    if model["type"] == "Unigram":
        # The best segmentation could pick a whole control token. Renamed, not removed: places are ids.
        renamed = [f"{_MARK}{i}" if piece in names else piece for i, (piece, _) in enumerate(vocabulary)]
        model["vocab"] = [[piece, score] for piece, (_, score) in zip(renamed, vocabulary, strict=True)]
    elif model["type"] != "BPE" or model.get("ignore_merges"):
        # These look whole words up. (Merges never build a control token.)
        keep = {model.get("unk_token")}
        model["vocab"] = {piece: i for piece, i in vocabulary.items() if piece not in names or piece in keep}
    return json.dumps(value)
