"""The shapes in which preferences come: one JSON value in, one ranking out. Pure.

Known: TRL conversational (with or without a separate prompt), plain strings, Anthropic-HH transcripts,
OpenAI preference rows, ranked lists. What fits none is refused with the keys that were found.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dpo_studio.domain.chat import MAX_PROMPT_CHARS, Message, Role, check_conversation, clean_text
from dpo_studio.errors import BadInput
from dpo_studio.store.pairs import NewImport

MAX_RESPONSES = 16
_PAIR_ID = re.compile(r"[0-9a-f]{32}:[0-9a-z-]{1,16}")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
KNOWN = (
    'prompt + chosen + rejected, chosen + rejected ("\\n\\nHuman: …" transcripts or messages), '
    "input + preferred_output + non_preferred_output, or prompt + responses (best first)"
)


def parse_prompt(value: Any) -> tuple[Message, ...]:
    """The conversation of `{"prompt": text or messages}`, `{"messages": …}` or a bare text."""
    if isinstance(value, Mapping):
        keys = [key for key in ("prompt", "messages") if key in value]
        if len(keys) != 1:
            raise BadInput(f"expected prompt or messages, found the keys {sorted(map(str, value))[:8]}")
        value = value[keys[0]]
    return check_conversation(_conversation(value, "prompt"))


def parse_preference(value: Any) -> NewImport | None:
    """The ranking in one row; None when it ranks nothing: equal answers, or an empty one preferred.

    Saying nothing may lose but not win. A `pair_id`, as in a studio's export, is kept. Raises BadInput
    saying what was expected and found.
    """
    messages, responses = _split(value)
    prompt = check_conversation(messages)
    # A repeated answer keeps its best place.
    ranked = tuple(dict.fromkeys(_checked_response(response) for response in responses))
    usable = tuple(text for place, text in enumerate(ranked, start=1) if text or place == len(ranked))
    return NewImport(prompt, usable, _pair_id(value)) if len(usable) > 1 else None


def _pair_id(row: Mapping[str, Any]) -> str:
    found = row.get("pair_id")
    # Somebody else's column of that name is no business of ours.
    return found if isinstance(found, str) and _PAIR_ID.fullmatch(found) else ""


def _split(value: Any) -> tuple[Sequence[Message], Sequence[str]]:
    if not isinstance(value, Mapping):
        raise BadInput(f"expected an object, found {type(value).__name__}")
    keys = set(value)
    if {"input", "preferred_output", "non_preferred_output"} <= keys:
        return _openai(value)
    if {"prompt", "responses"} <= keys:
        return _conversation(value["prompt"], "prompt"), _texts(value["responses"])
    if {"chosen", "rejected"} <= keys:
        return _chosen_rejected(value)
    raise BadInput(f"expected {KNOWN}; found the keys {sorted(map(str, keys))[:8]}")


def _chosen_rejected(value: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[str]]:
    chosen, rejected = value["chosen"], value["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if "prompt" in value:
            return _conversation(value["prompt"], "prompt"), (chosen, rejected)
        return _transcripts(chosen, rejected)
    a, b = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if a and a[0].role == "assistant":
        if "prompt" not in value:
            raise BadInput("expected a prompt beside answers that start with the assistant, found none")
        return _conversation(value["prompt"], "prompt"), (_only(a, "chosen"), _only(b, "rejected"))
    if a[:-1] != b[:-1]:
        raise BadInput("expected chosen and rejected to share all messages but the last, found others")
    return a[:-1], (_only(a[-1:], "chosen"), _only(b[-1:], "rejected"))


def _openai(value: Mapping[str, Any]) -> tuple[Sequence[Message], Sequence[str]]:
    given = value["input"]
    if not isinstance(given, Mapping) or "messages" not in given:
        raise BadInput("input: expected an object with messages, found none")
    preferred = _messages(value["preferred_output"], "preferred_output")
    other = _messages(value["non_preferred_output"], "non_preferred_output")
    answers = (_only(preferred, "preferred_output"), _only(other, "non_preferred_output"))
    return _messages(given["messages"], "input.messages"), answers


def _transcripts(chosen: str, rejected: str) -> tuple[Sequence[Message], Sequence[str]]:
    """Anthropic-HH: both transcripts share their turns up to the last common question.

    A few transcripts have two Assistant turns in a row; inside the shared part they become one, after it
    they belong to the answer.
    """
    a, b = _turns(chosen), _turns(rejected)
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    while common and a[common - 1].role != "user":
        common -= 1
    rests = (a[common:], b[common:])
    if not common or any(not rest or any(turn.role == "user" for turn in rest) for rest in rests):
        raise BadInput(
            "expected two transcripts that differ only in the answer after the last shared Human turn"
        )
    return _merged(a[:common]), ["\n\n".join(turn.content for turn in rest).strip() for rest in rests]


def _turns(transcript: str) -> list[Message]:
    parts = _TURN.split("\n\n" + transcript.lstrip())
    if parts[0].strip() or len(parts) < 3:
        raise BadInput('expected a transcript that starts with "Human:", found other text; or add a prompt')
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(_ROLES[who], text.strip()) for who, text in turns]


def _merged(turns: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            turn = Message(turn.role, f"{merged.pop().content}\n\n{turn.content}")
        merged.append(turn)
    return merged


def _conversation(value: Any, where: str) -> Sequence[Message]:
    return [Message("user", value)] if isinstance(value, str) else _messages(value, where)


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadInput(f"{where}: expected text or a list of messages, found {type(value).__name__}")
    return [_message(item, f"{where}[{position}]") for position, item in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise BadInput(f'{where}: expected {{"role", "content"}} with text content, found something else')
    role = value.get("role")
    if role not in ("system", "user", "assistant"):
        raise BadInput(f"{where}: expected the role system, user or assistant, found {str(role)[:40]!r}")
    return Message(cast(Role, role), value["content"])


def _only(messages: Sequence[Message], where: str) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadInput(f"{where}: expected one message of the assistant, found {len(messages)} messages")
    return messages[0].content


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadInput("responses: expected a list of texts, found something else")
    if not 2 <= len(value) <= MAX_RESPONSES:
        raise BadInput(f"responses: expected 2 to {MAX_RESPONSES} texts, found {len(value)}")
    return value


def _checked_response(text: str) -> str:
    if len(text) > MAX_PROMPT_CHARS:
        raise BadInput(f"expected answers of at most {MAX_PROMPT_CHARS} characters, found {len(text)}")
    return clean_text(text).strip()
