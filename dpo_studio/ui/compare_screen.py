"""Two versions' answers to one prompt, as plain data: texts, captions, word differences."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_studio.diff import word_diff
from dpo_studio.domain.chat import SamplingParams
from dpo_studio.errors import BadInput
from dpo_studio.services.views import GenerationView, VersionView
from dpo_studio.ui.markup import Html, element, join
from dpo_studio.ui.safe_text import plain_md, safe_md

MAX_PINNED = 20


@dataclass(frozen=True, slots=True)
class VersionChoices:
    """What the two menus offer and what they begin with."""

    choices: list[tuple[str, str]]
    left: str
    right: str
    hint: str


@dataclass(frozen=True, slots=True)
class CompareScreen:
    """One state of the two panes. The differences are there only when both answers are complete."""

    left: str
    right: str
    left_caption: str
    right_caption: str
    left_diff: Html
    right_diff: Html


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """One pinned prompt and what both versions made of it; None while it is being written."""

    prompt: str
    left: str | None = None
    right: str | None = None


def render_versions(views: Sequence[VersionView]) -> VersionChoices:
    """Newest first below the live one; base against live to begin with."""
    names = [(f"{view.name} (live)" if view.is_live else view.name, view.name) for view in views]
    live = next((view.name for view in views if view.is_live), "base")
    hint = "" if live != "base" else "Base is live: until a round is promoted, both sides are the same."
    return VersionChoices(list(reversed(names)), "base", live, hint)


def render_pair(left: GenerationView | None, right: GenerationView | None) -> CompareScreen:
    """Both answers so far."""
    texts = [view.texts[0] if view else "" for view in (left, right)]
    is_complete = all(view is not None and view.done for view in (left, right))
    removed, added = render_diff(*texts) if is_complete else (Html(), Html())
    return CompareScreen(
        left=safe_md(texts[0]),
        right=safe_md(texts[1]),
        left_caption=_caption(left),
        right_caption=_caption(right),
        left_diff=removed,
        right_diff=added,
    )


def render_diff(left: str, right: str) -> tuple[Html, Html]:
    """Each text with the words marked that the other does not have."""
    spans = word_diff(left, right)
    old = [
        element("del", span.text) if span.kind == "removed" else span.text
        for span in spans
        if span.kind != "added"
    ]
    new = [
        element("ins", span.text) if span.kind == "added" else span.text
        for span in spans
        if span.kind != "removed"
    ]
    return join(*old), join(*new)


def render_replay(rows: Sequence[ReplayRow], left: str, right: str) -> Html:
    """A table of all pinned prompts."""
    head = element(
        "tr",
        element("th", "Prompt", scope="col"),
        element("th", left, scope="col"),
        element("th", right, scope="col"),
    )
    return element(
        "table",
        element("caption", f"Pinned prompts: {left} and {right}"),
        element("thead", head),
        element("tbody", *(_replay_row(row) for row in rows)),
        cls="ds-replay",
    )


def sampling_of(temperature: object, seed: object, max_tokens: int) -> SamplingParams:
    """What the visitor asked for. Raises BadInput with one sentence for values that do not fit."""
    return SamplingParams(
        temperature=_number("temperature", temperature),
        max_tokens=max_tokens,
        seed=int(_number("seed", seed)),
    )


def parse_pinned(text: str) -> tuple[str, ...]:
    """One prompt a line. Raises BadInput when there are none or too many."""
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 1 <= len(prompts) <= MAX_PINNED:
        raise BadInput(f"pinned prompts: expected 1 to {MAX_PINNED} lines, found {len(prompts)}")
    return prompts


def _replay_row(row: ReplayRow) -> Html:
    if row.left is None or row.right is None:
        left, right = (join("…" if text is None else text) for text in (row.left, row.right))
    else:
        left, right = render_diff(row.left, row.right)
    return element("tr", element("th", row.prompt, scope="row"), element("td", left), element("td", right))


def _caption(view: GenerationView | None) -> str:
    if view is None:
        return ""
    name = f"**{plain_md(view.version)}**"
    return f"{name} – {view.num_tokens[0]} tokens" if view.done and view.num_tokens else name


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise BadInput(f"{name}: expected a number, found {str(value)[:40]!r}")
    return float(value)
