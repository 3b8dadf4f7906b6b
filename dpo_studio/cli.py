"""The command line: flags in, one call each, sentences out.

Thin and quick: what a command needs is imported when it runs, so that `--help` loads no model library.
A StudioError is one line on stderr and exit code 1, wrong usage is 2, Ctrl-C is 130.
"""

import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dpo_studio import __version__
from dpo_studio.errors import StudioError
from dpo_studio.settings import Settings, load_settings
from dpo_studio.tastes import taste_names

TRACEBACK_VARIABLE = "DPO_STUDIO_TRACEBACK"
T = TypeVar("T")


class ExportFormat(StrEnum):
    """Formats of `export-pairs`."""

    TRL = "trl"
    OPENAI = "openai"
    CSV = "csv"
    PARQUET = "parquet"


StorageOption = Annotated[
    Path | None, typer.Option("--storage", help="Folder of all state [storage].", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="starter, a folder, or a hub id [starter].", show_default=False)
]
TemplateOption = Annotated[
    Path | None,
    typer.Option(
        "--chat-template", help="A Jinja file, for tokenizers without a chat template.", show_default=False
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, … [auto].", show_default=False)
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="auto, float32, bfloat16, float16, or nf4: 4 bits, for models that would not fit [auto].",
        show_default=False,
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = build_cli()(given, standalone_mode=False, prog_name="dpo-studio")
    except StudioError as error:
        return _fail(str(error), 1)
    except typer.Abort:
        return _fail("stopped", 130)
    except typer.TyperException as error:
        # Every such exception but Abort and Exit is a complaint about the arguments.
        message = getattr(error, "format_message", error.__str__)()
        return _fail(f"{message} (see dpo-studio --help)", 2)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; set {TRACEBACK_VARIABLE}=1 for details", 1)
    return code if isinstance(code, int) else 0


def build_cli() -> typer.Typer:
    """The command tree."""
    cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    cli.callback(invoke_without_command=True)(_root)
    for name, command in (
        ("serve", serve),
        ("import-prompts", import_prompts),
        ("import-pairs", import_pairs),
        ("export-pairs", export_pairs),
        ("round", train_round),
        ("versions", list_versions),
        ("promote", promote),
        ("rollback", roll_back),
        ("compare", compare),
        ("simulate", run_simulation),
        ("export-model", export_model),
        ("doctor", doctor),
    ):
        cli.command(name)(command)
    return cli


def serve(
    storage: StorageOption = None,
    model: ModelOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on [127.0.0.1].", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 lets the system choose [7860].", show_default=False)
    ] = None,
    chat_template: TemplateOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the answers to label.", show_default=False)
    ] = None,
    interval_minutes: Annotated[
        int | None, typer.Option(help="Least time between scheduled rounds.", show_default=False)
    ] = None,
    min_new_pairs: Annotated[
        int | None, typer.Option(help="New pairs that a scheduled round waits for.", show_default=False)
    ] = None,
    undo_window_s: Annotated[
        int | None,
        typer.Option("--undo-window", help="Seconds before a vote is trained on.", show_default=False),
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="auto promotes what passes, manual asks a person.", show_default=False)
    ] = None,
) -> None:
    """Start the studio: pages, API, model, schedule."""
    settings = load_settings(**locals())
    from dpo_studio import composition

    composition.serve(settings)


def import_prompts(
    file: Annotated[Path, typer.Argument(help="JSONL.")], storage: StorageOption = None
) -> None:
    """Add prompts to the label queue: all of the file's, or none when a line is bad."""
    settings = load_settings(storage=storage)
    from dpo_studio.commands import data

    typer.echo(data.import_prompts(settings, file))


def import_pairs(file: Annotated[Path, typer.Argument(help="JSONL.")], storage: StorageOption = None) -> None:
    """Add preference pairs or rankings from elsewhere: all of the file's, or none when a line is bad."""
    settings = load_settings(storage=storage)
    from dpo_studio.commands import data

    typer.echo(data.import_pairs(settings, file))


def export_pairs(
    file: Annotated[Path, typer.Argument(help="Where to write.")],
    format: Annotated[
        ExportFormat, typer.Option("--format", help="trl is read by TRL's DPOTrainer.")
    ] = ExportFormat.TRL,
    storage: StorageOption = None,
) -> None:
    """Write every trainable preference pair."""
    settings = load_settings(storage=storage)
    from dpo_studio.commands import data

    typer.echo(data.export_pairs(settings, file, format.value))


def train_round(
    storage: StorageOption = None,
    model: ModelOption = None,
    chat_template: TemplateOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Train a DPO round now on all votes, wait for it, print the gate's verdict."""
    settings = load_settings(**locals())
    from dpo_studio.commands import studio

    _run(studio.train_round(settings, typer.echo))


def list_versions(storage: StorageOption = None) -> None:
    """List what can be served; the live version is marked."""
    settings = load_settings(storage=storage)
    from dpo_studio.commands import data

    for line in data.list_versions(settings):
        typer.echo(line)


def promote(
    version: Annotated[str, typer.Argument(help="base, v1, v2, …")],
    storage: StorageOption = None,
    model: ModelOption = None,
    chat_template: TemplateOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Make a version live, after it has answered the smoke prompts."""
    settings = _model_settings(storage, model, chat_template, device, dtype)
    from dpo_studio.commands import studio

    typer.echo(f"live: {_run(studio.promote(settings, version))}")


def roll_back(
    storage: StorageOption = None,
    model: ModelOption = None,
    chat_template: TemplateOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Make the version live that was live before."""
    settings = _model_settings(storage, model, chat_template, device, dtype)
    from dpo_studio.commands import studio

    typer.echo(f"live: {_run(studio.roll_back(settings))}")


def compare(
    prompts: Annotated[Path, typer.Option(help="JSONL, as for import-prompts.")],
    versions: Annotated[str, typer.Option(help="Names joined by commas.")] = "base,live",
    out: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("report.html"),
    seed: Annotated[int, typer.Option(min=0, help="The same for every version.")] = 0,
    storage: StorageOption = None,
    model: ModelOption = None,
    chat_template: TemplateOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Answer the same prompts by several versions and write them side by side."""
    settings = _model_settings(storage, model, chat_template, device, dtype)
    from dpo_studio.commands import compare as command

    _run(command.compare(settings, prompts, versions, out, seed, typer.echo))


def run_simulation(
    labeler: Annotated[str, typer.Option(help=f"{', '.join(taste_names())}, or several joined by +.")],
    votes: Annotated[int, typer.Option(min=0, help="Votes to give.")] = 100,
    url: Annotated[str, typer.Option(help="Address of the running studio.")] = "http://127.0.0.1:7860",
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share of votes flipped by mistake.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the mistakes and the measured answers.")] = 0,
    train: Annotated[bool, typer.Option("--train", help="Train a round afterwards and wait for it.")] = False,
    measure: Annotated[bool, typer.Option(help="Compare base and live at the end.")] = True,
    storage: StorageOption = None,
) -> None:
    """Vote as a scripted labeler with a known taste, through the HTTP API of a running studio."""
    del storage  # Accepted everywhere; here the studio at the URL knows its own.
    from dpo_studio.simulate import SimulationPlan, open_client, simulate

    plan = SimulationPlan(labeler, votes, noise, seed, is_training=train, is_measuring=measure)
    with open_client(url) as client:
        simulate(plan, client, report=typer.echo)


def export_model(
    version: Annotated[str, typer.Argument(help="base, v1, v2, …")],
    dir: Annotated[Path, typer.Argument(help="Folder to make.")],
    merge: Annotated[bool, typer.Option("--merge", help="Full weights instead of the adapter.")] = False,
    storage: StorageOption = None,
    model: ModelOption = None,
    chat_template: TemplateOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Write a version as a folder for other programs: a PEFT adapter, or a whole model."""
    settings = _model_settings(storage, model, chat_template, device, dtype)
    from dpo_studio.commands import export_model as command

    typer.echo(command.export_model(settings, version, dir, is_merged=merge))


def doctor(storage: StorageOption = None) -> None:
    """Report versions, journal mode, integrity, damaged adapters and disk space."""
    settings = load_settings(storage=storage)
    from dpo_studio.commands import doctor as command

    for line in command.examine(settings):
        typer.echo(line)


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Label two answers, train DPO rounds on the votes, hot-swap the better model in."""
    if version:
        typer.echo(f"dpo-studio {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _model_settings(
    storage: Path | None, model: str | None, chat_template: Path | None, device: str | None, dtype: str | None
) -> Settings:
    return load_settings(
        storage=storage, model=model, chat_template=chat_template, device=device, dtype=dtype
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _fail(message: str, code: int) -> int:
    typer.echo(f"dpo-studio: {' '.join(message.split())}", err=True)
    return code
