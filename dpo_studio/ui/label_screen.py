"""What the label page shows, as plain data: rules of the screen without any component.

Blind: nothing here knows a version until the vote is in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import Choice
from dpo_studio.services.views import ComparisonView, LabelProgress, VoteView
from dpo_studio.ui.markup import Html, element
from dpo_studio.ui.safe_text import plain_md, safe_md

CHOICE_NAMES = {
    Choice.A: "A is better",
    Choice.B: "B is better",
    Choice.TIE: "Tie",
    Choice.BOTH_BAD: "Both are bad",
    Choice.SKIP: "Skip",
}
ROLE_NAMES = {"system": "Instructions", "user": "Prompt", "assistant": "Answer so far"}


@dataclass(frozen=True, slots=True)
class LabelScreen:
    """One state of the page. `notice` None leaves the sentence that is there."""

    prompt: str
    a: str
    b: str
    comparison_id: str
    can_vote: bool
    can_fetch: bool
    """No comparison is open or on its way: offer to get one."""
    notice: str | None = None


def render_comparison(view: ComparisonView, notice: str | None = None) -> LabelScreen:
    """A comparison, maybe still being written."""
    return LabelScreen(
        prompt=conversation_md(view.messages),
        a=safe_md(view.a),
        b=safe_md(view.b),
        comparison_id=view.id,
        can_vote=view.ready,
        can_fetch=False,
        notice=notice,
    )


def render_nothing(sentence: str) -> LabelScreen:
    """No comparison can be shown, and why."""
    return LabelScreen("", "", "", "", can_vote=False, can_fetch=True, notice=plain_md(sentence))


def render_vote(view: VoteView) -> str:
    """The reveal after a vote, one line."""
    chosen = f"**{CHOICE_NAMES[Choice(view.choice)]}**"
    if view.version_a == view.version_b:
        return f"{chosen} – both answers were written by **{plain_md(view.version_a)}**."
    return f"{chosen} – A was **{plain_md(view.version_a)}**, B was **{plain_md(view.version_b)}**."


def render_progress(view: LabelProgress) -> Html:
    """Counts and the way to the next round."""
    missing = max(0, view.min_new_pairs - view.new_pairs)
    if missing:
        ahead = f"{missing} more {_plural(missing, 'pair')} until the next round"
    else:
        ahead = f"{view.new_pairs} new pairs, enough for a round"
    return element(
        "section",
        element(
            "p",
            element("strong", str(view.today)),
            " today ",
            element("span", f"{view.total} in all", cls="ds-soft"),
        ),
        element(
            "progress",
            max=str(view.min_new_pairs),
            value=str(min(view.new_pairs, view.min_new_pairs)),
            aria_label="New pairs on the way to the next round",
        ),
        element("p", ahead, cls="ds-soft"),
        cls="ds-progress",
        aria_label="Your progress",
    )


def conversation_md(messages: Sequence[Message]) -> str:
    """The prompt: a single question as it is, a longer conversation turn by turn."""
    if len(messages) == 1:
        return safe_md(messages[0].content)
    return "\n\n".join(f"###### {ROLE_NAMES[turn.role]}\n\n{safe_md(turn.content)}" for turn in messages)


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
