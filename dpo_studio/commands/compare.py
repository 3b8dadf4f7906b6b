"""`dpo-studio compare`: the same prompts and seed through several versions, as one HTML page."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from dpo_studio.commands.data import read_lines, write_chunks
from dpo_studio.commands.studio import Say, running_studio
from dpo_studio.domain.chat import Message, SamplingParams
from dpo_studio.errors import BadInput
from dpo_studio.report_html import ComparedPrompt, ComparisonReport, render
from dpo_studio.services.pair_formats import parse_prompt
from dpo_studio.services.studio import Studio
from dpo_studio.settings import Settings

MAX_VERSIONS = 6
Conversation = tuple[Message, ...]


async def compare(settings: Settings, prompts: Path, versions: str, out: Path, seed: int, say: Say) -> None:
    """Answer every prompt of the file by every version and write the page."""
    names = version_names(versions)
    conversations = parse_prompts(read_lines(prompts))
    if not conversations:
        raise BadInput(f"prompts: expected at least one prompt in {prompts}, found none")
    sampling = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens, seed=seed)
    async with running_studio(settings) as studio:
        report = await answered(studio, conversations, names, sampling, say)
    write_chunks(out, [render(report).encode()])
    say(f"{out}: {len(conversations)} prompts, {', '.join(report.versions)}")


async def answered(
    studio: Studio,
    conversations: Sequence[Conversation],
    names: Sequence[str],
    sampling: SamplingParams,
    say: Say,
) -> ComparisonReport:
    """The report; `live` appears under the name that it stands for."""
    versions = tuple(studio.deployment.resolve(name) for name in names)
    compared = []
    for number, messages in enumerate(conversations, start=1):
        requests = [
            studio.generation.generate(messages, version=name, sampling=sampling) for name in versions
        ]
        views = await asyncio.gather(*requests)
        compared.append(ComparedPrompt(messages, tuple(view.texts[0] for view in views)))
        if number % 10 == 0:
            say(f"{number}/{len(conversations)} prompts")
    return ComparisonReport(
        model=studio.settings.model,
        versions=versions,
        prompts=tuple(compared),
        sampling=f"temperature {sampling.temperature:g}, seed {sampling.seed}",
        created_at=datetime.now(UTC),
    )


def parse_prompts(lines: Sequence[str]) -> list[Conversation]:
    """Prompts as `import-prompts` takes them. Raises BadInput naming the line."""
    conversations = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        try:
            if text:
                conversations.append(parse_prompt(json.loads(text) if text[0] in '{["' else text))
        except (ValueError, RecursionError):
            raise BadInput(f"line {number}: expected one JSON value, found {text[:40]!r}") from None
        except BadInput as error:
            raise BadInput(f"line {number}: {error}") from error
    return conversations


def version_names(text: str) -> list[str]:
    """`base,live` → names. Raises BadInput for none, too many or repeated ones."""
    names = [name.strip() for name in text.split(",")]
    if not 1 <= len(names) <= MAX_VERSIONS or "" in names or len(set(names)) != len(names):
        raise BadInput(
            f"versions: expected 1 to {MAX_VERSIONS} different names joined by commas, found {text!r}"
        )
    return names
