"""The page of `dpo-studio compare`: the same prompts answered by several versions, side by side.

One file that needs nothing else: no script, no link, no image, and a policy in its head that forbids
them. Every text of a person or a model is escaped. Words that changed from the first version to another
are marked as `<del>` and `<ins>`, so that screen readers and print show them too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from dpo_studio.diff import DiffSpan, word_diff
from dpo_studio.domain.chat import Message


@dataclass(frozen=True, slots=True)
class ComparedPrompt:
    """One prompt and its answers, in the order of the report's versions."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """Everything the page shows."""

    model: str
    versions: tuple[str, ...]
    prompts: tuple[ComparedPrompt, ...]
    sampling: str
    """How the answers were drawn, for people: `temperature 0.9, seed 0`."""
    created_at: datetime

    def __post_init__(self) -> None:
        assert self.versions and all(len(p.answers) == len(self.versions) for p in self.prompts)


def render(report: ComparisonReport) -> str:
    """The whole page as HTML text."""
    title = f"{' · '.join(report.versions)} — DPO Studio"
    prompts = "\n".join(_prompt(report, number, p) for number, p in enumerate(report.prompts, start=1))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Versions compared</h1>
<p class="facts">{_facts(report)}</p>
{_summary(report)}
<label class="toggle"><input type="checkbox" id="marks" checked>
Mark words that differ from {_version(report, 0)}</label>
</header>
<main>
{prompts}
</main>
</body>
</html>
"""


def _facts(report: ComparisonReport) -> str:
    moment = report.created_at.strftime("%Y-%m-%d %H:%M %Z").strip()
    return escape(f"{report.model} · {_count(len(report.prompts), 'prompt')} · {report.sampling} · {moment}")


def _summary(report: ComparisonReport) -> str:
    rows = "\n".join(_summary_row(report, column) for column in range(len(report.versions)))
    return f"""<table>
<thead><tr><th scope="col">Version</th><th scope="col">Mean words</th>
<th scope="col">Same as {_version(report, 0)}</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>"""


def _summary_row(report: ComparisonReport, column: int) -> str:
    answers = [prompt.answers[column] for prompt in report.prompts]
    words = sum(len(answer.split()) for answer in answers) / max(len(answers), 1)
    same = sum(prompt.answers[0] == prompt.answers[column] for prompt in report.prompts)
    equal = "–" if column == 0 else f"{same} of {len(answers)}"
    return f'<tr><th scope="row">{_version(report, column)}</th><td>{words:.1f}</td><td>{equal}</td></tr>'


def _prompt(report: ComparisonReport, number: int, prompt: ComparedPrompt) -> str:
    columns = "\n".join(_answer(report, column, prompt) for column in range(len(report.versions)))
    return f"""<section aria-labelledby="p{number}">
<h2 id="p{number}">Prompt {number}</h2>
{_conversation(prompt.messages)}
<div class="answers">
{columns}
</div>
</section>"""


def _conversation(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return f'<blockquote dir="auto">{escape(messages[0].content)}</blockquote>'
    turns = (
        f'<p dir="auto"><span class="role">{escape(message.role)}</span> {escape(message.content)}</p>'
        for message in messages
    )
    return f"<blockquote>{''.join(turns)}</blockquote>"


def _answer(report: ComparisonReport, column: int, prompt: ComparedPrompt) -> str:
    text = prompt.answers[column]
    words = _count(len(text.split()), "word")
    body = escape(text) if column == 0 else _marked(word_diff(prompt.answers[0], text))
    return f"""<article>
<h3>{_version(report, column)} <span class="count">{words}</span></h3>
<div class="text" dir="auto">{body or '<span class="none">no text</span>'}</div>
</article>"""


def _marked(spans: Sequence[DiffSpan]) -> str:
    tags = {"same": ("", ""), "removed": ("<del>", "</del>"), "added": ("<ins>", "</ins>")}
    return "".join(f"{tags[span.kind][0]}{escape(span.text)}{tags[span.kind][1]}" for span in spans)


def _version(report: ComparisonReport, column: int) -> str:
    return escape(report.versions[column])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_STYLE = """
:root { --page: #fbfbfa; --card: #fff; --ink: #1c1d1f; --soft: #5d6168; --line: #e2e3e6;
  --gone: #fde3e1; --gone-ink: #8c1d13; --new: #dcf3e2; --new-ink: #14532d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171a; --card: #1d2024; --ink: #e8e9eb; --soft: #a2a7af; --line: #33373d;
    --gone: #4a2220; --gone-ink: #ffb4ab; --new: #1c3d28; --new-ink: #a6e9bb; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 0 0 .5rem; font-size: .85rem; font-weight: 600; color: var(--soft); }
h3 { margin: 0 0 .5rem; font-size: .95rem; }
.facts, .count, .role, .none, th[scope=col] { color: var(--soft); }
.facts { margin: .35rem 0 1.25rem; overflow-wrap: anywhere; }
.count, .role { font-size: .8rem; font-weight: 400; }
.count { margin-inline-start: .4rem; }
table { border-collapse: collapse; margin-bottom: 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid var(--line); text-align: start;
  font-size: .9rem; }
th[scope=col] { font-weight: 400; }
.toggle { display: inline-flex; gap: .5rem; align-items: center; min-height: 2.5rem; cursor: pointer; }
.toggle input { width: 1.1rem; height: 1.1rem; accent-color: var(--new-ink); }
section { margin-top: 2rem; }
blockquote { margin: 0 0 .75rem; font-size: 1.05rem; font-weight: 600; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
blockquote p { margin: 0 0 .35rem; }
.answers { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
article { min-width: 0; padding: .9rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; contain: content; }
ins { background: var(--new); color: var(--new-ink); text-decoration: none; border-radius: .2rem; }
del { background: var(--gone); color: var(--gone-ink); border-radius: .2rem; }
body:has(#marks:not(:checked)) del { display: none; }
body:has(#marks:not(:checked)) ins { background: none; color: inherit; }
@media print { body { max-width: none; } .toggle { display: none; } article { break-inside: avoid; } }
"""
