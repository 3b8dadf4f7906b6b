"""Sampled ids → text, piece by piece, safe for characters of several bytes and for stop strings.

Pieces concatenate to `text`. Nothing is released that could still turn out to be part of a character or of
a stop string.
"""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
# A character has at most 4 bytes; a longer wait means that the bytes are invalid and never will be one.
_MAX_PENDING = 8

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """The text of one sample while it grows. Control tokens must not be pushed."""

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Decoding starts one released piece early: some decoders treat the first token of a text specially.
        self._start = 0
        self._released = 0
        self._held = ""
        self.text = ""
        self.is_stopped = False
        """Whether a stop string was met; `text` ends before it."""

    def push(self, token: int) -> str:
        """Text that this token releases, often none."""
        self._ids.append(token)
        piece = self._pending_text()
        is_waiting = len(self._ids) - self._released <= _MAX_PENDING
        if not piece or (piece.endswith(_REPLACEMENT) and is_waiting):
            return ""
        self._start, self._released = self._released, len(self._ids)
        return self._release(piece, is_last=False)

    def finish(self) -> str:
        """What was still held back."""
        return "" if self.is_stopped else self._release(self._pending_text(), is_last=True)

    def _pending_text(self) -> str:
        known = self._decode(self._ids[self._start : self._released])
        return self._decode(self._ids[self._start :])[len(known) :]

    def _release(self, piece: str, *, is_last: bool) -> str:
        buffer = self._held + piece
        found = [position for stop in self._stops if (position := buffer.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            released, self._held = buffer[: min(found)], ""
        else:
            held = 0 if is_last else _longest_overlap(buffer, self._stops)
            released, self._held = buffer[: len(buffer) - held], buffer[len(buffer) - held :]
        self.text += released
        return released


def _longest_overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
