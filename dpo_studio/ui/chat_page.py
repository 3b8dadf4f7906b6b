"""Chat: talk to the live version; each answer says which version wrote it.

The conversation lives in the browser and is the visitor's own; it is read strictly and checked by the
service like any other prompt. Nothing is stored.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from dpo_studio.domain.chat import SamplingParams
from dpo_studio.services.generation import GenerationService
from dpo_studio.services.studio import Studio
from dpo_studio.ui.board import composer, hidden_text, notice
from dpo_studio.ui.chat_screen import Chat, ChatScreen, parse_chat, render_chat
from dpo_studio.ui.streams import paced
from dpo_studio.ui.trouble import sentence_of

Updates = tuple[Any, ...]


class ChatHandlers:
    """What the page's events do."""

    def __init__(self, generation: GenerationService, sampling: SamplingParams) -> None:
        self._generation = generation
        self._sampling = sampling

    async def send(self, text: str, history: str) -> AsyncGenerator[Updates, None]:
        """The answer of the live version, as it is written. On an error the message stays in its box."""
        before = Chat()
        try:
            before = parse_chat(str(history or ""))
            chat = before.asked(str(text))
            source = self._generation.stream(chat.messages, version="live", sampling=self._sampling)
            # Emptied once: the visitor may type the next message while this one is answered.
            box: Any = ""
            async with aclosing(paced(source)) as views:
                async for view in views:
                    answered = chat.answered(view.texts[0], view.version)
                    yield to_updates(render_chat(answered, is_writing=not view.done), box)
                    box = gr.skip()
        except Exception as error:
            yield to_updates(render_chat(before, notice=sentence_of(error)), gr.skip())

    def stop(self) -> Updates:
        """The buttons as they are at rest; Gradio has cancelled the answer."""
        return _buttons(is_writing=False)

    def clear(self) -> Updates:
        """A new chat."""
        return to_updates(render_chat(Chat()), "")


def to_updates(screen: ChatScreen, box: Any) -> Updates:
    """Values for the page's outputs."""
    return (screen.bubbles, screen.history, screen.notice, box, *_buttons(is_writing=screen.is_writing))


def _buttons(*, is_writing: bool) -> Updates:
    return gr.update(visible=not is_writing), gr.update(visible=is_writing)


def build(studio: Studio) -> None:
    """Lay the page out and wire it."""
    settings = studio.settings
    sampling = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens)
    handlers = ChatHandlers(studio.generation, sampling)
    bubbles = gr.Chatbot(
        show_label=False,
        elem_id="chat",
        elem_classes="ds-chat",
        height=None,
        latex_delimiters=[],
        buttons=["copy"],
        feedback_options=None,
        allow_tags=False,
        layout="bubble",
        placeholder="Ask the live version something. Each answer says which version wrote it.",
    )
    sentence = notice()
    with gr.Row(elem_classes="ds-composer", equal_height=True):
        box = composer("Message", "Write a message", "message")
        send = gr.Button("Send", variant="primary", scale=0, min_width=100, elem_id="send")
        stop = gr.Button("Stop", visible=False, scale=0, min_width=100, elem_id="stop")
        clear = gr.Button("New chat", scale=0, min_width=110, elem_id="new-chat")
    history = hidden_text()

    outputs = [bubbles, history, sentence, box, send, stop]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    sent = gr.on([send.click, box.submit], handlers.send, [box, history], outputs, **quiet)
    stop.click(handlers.stop, None, [send, stop], cancels=sent, queue=False, **quiet)
    clear.click(handlers.clear, None, outputs, cancels=sent, queue=False, **quiet)
