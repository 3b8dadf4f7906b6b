"""A chat as plain data: its history crosses the browser, so it is read strictly and shown escaped."""

import json
from dataclasses import dataclass
from typing import Any

from dpo_studio.domain.chat import Message, Role
from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.errors import BadInput
from dpo_studio.ui.safe_text import plain_md, safe_md


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message; `version` names who wrote an answer."""

    role: Role
    content: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as the browser keeps it between two events."""

    turns: tuple[ChatTurn, ...] = ()

    def asked(self, text: str) -> "Chat":
        """With the visitor's next message; an answer that was stopped before its first word is dropped."""
        turns = self.turns
        if turns and turns[-1].role == "assistant" and not turns[-1].content.strip():
            turns = turns[:-2]
        return Chat((*turns, ChatTurn("user", text)))

    def answered(self, text: str, version: str) -> "Chat":
        """With the answer so far."""
        return Chat((*self.turns, ChatTurn("assistant", text, version)))

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is asked."""
        return tuple(Message(turn.role, turn.content) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class ChatScreen:
    """One state of the page."""

    bubbles: list[dict[str, Any]]
    history: str
    notice: str
    is_writing: bool


def render_chat(chat: Chat, *, is_writing: bool = False, notice: str = "") -> ChatScreen:
    """Bubbles with the version below each answer."""
    return ChatScreen([_bubble(turn) for turn in chat.turns], dump_chat(chat), plain_md(notice), is_writing)


def parse_chat(text: str) -> Chat:
    """The chat that `dump_chat` wrote. Raises BadInput for anything else."""
    if not text:
        return Chat()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadInput(
            "history: expected the chat of this page, found other text; start a new chat"
        ) from error
    return from_json(Chat, value, where="history")


def dump_chat(chat: Chat) -> str:
    """One line of JSON."""
    return json.dumps(to_json(chat), ensure_ascii=False)


def _bubble(turn: ChatTurn) -> dict[str, Any]:
    content = safe_md(turn.content)
    if turn.role == "assistant":
        # An unclosed fence would swallow the caption; the closing mark is harmless after a closed one.
        content = f"{content}{_closing(turn.content)}\n\n###### {plain_md(turn.version)}"
    return {"role": turn.role, "content": content}


def _closing(text: str) -> str:
    fences = [line for line in text.splitlines() if line.startswith("```")]
    return "\n```" if len(fences) % 2 else ""
