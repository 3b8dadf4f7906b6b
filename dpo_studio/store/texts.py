"""Messages, responses and ids as they lie in columns."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from dpo_studio.domain.chat import Message
from dpo_studio.files import canonical_json


def messages_to_text(messages: Sequence[Message]) -> str:
    """Canonical JSON: equal conversations give equal text."""
    return canonical_json([{"role": message.role, "content": message.content} for message in messages])


def messages_from_text(text: str) -> tuple[Message, ...]:
    return tuple(Message(item["role"], item["content"]) for item in json.loads(text))


def ids_from_text(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text))


def content_id(value: Any) -> str:
    """An id that equal content shares: 32 hexadecimal characters of its sha256."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]
