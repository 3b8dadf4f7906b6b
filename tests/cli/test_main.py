"""The command line itself: help, errors, exit codes, and nothing heavy before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from dpo_studio import __version__
from dpo_studio.cli import main
from dpo_studio.errors import SettingsError
from tests.cli.conftest import CommandLine, FakeComposition

COMMANDS = (
    *("serve", "import-prompts", "import-pairs", "export-pairs", "round", "versions", "promote", "rollback"),
    *("compare", "simulate", "export-model", "doctor"),
)


def test_help_lists_every_command(command: CommandLine) -> None:
    for arguments in (["--help"], []):
        outcome = command.bare(*arguments)
        assert outcome.code == 0
        assert all(f"  {name} " in outcome.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_takes_a_storage(command: CommandLine, name: str) -> None:
    outcome = command.bare(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "--storage" in outcome.out


def test_the_version_is_printed(command: CommandLine) -> None:
    assert command.bare("--version").out == f"dpo-studio {__version__}\n"


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys; from dpo_studio.cli import main; main(['serve', '--help'])\n"
        "heavy = {'torch', 'gradio', 'transformers', 'fastapi', 'sqlmodel', 'httpx'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["promote"],
        ["compare"],
        ["serve", "--port", "x"],
        ["export-pairs", "f", "--format", "pickle"],
    ],
)
def test_wrong_usage_is_one_line_and_2(command: CommandLine, arguments: list[str]) -> None:
    outcome = command.bare(*arguments)
    assert outcome.code == 2
    assert_one_line(outcome.err)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "--host", "0.0.0.0"], "expected a loopback address"),
        (["serve", "--port", "99999"], "port: "),
        (["serve", "--gate", "maybe"], "gate: "),
        (["round", "--dtype", "int4"], "dtype: "),
        (["simulate", "--labeler", "nobody", "--url", "http://127.0.0.1:9"], "expected one of shorter"),
        (["simulate", "--labeler", "shorter", "--url", "http://127.0.0.1:9"], "expected a running studio"),
        (["simulate", "--labeler", "shorter", "--url", "http://[::1"], "expected an address"),
        (["simulate", "--labeler", "shorter", "--url", "nonsense"], "url: expected"),
    ],
)
def test_a_fault_of_the_world_is_one_line_and_1(
    command: CommandLine, arguments: list[str], sentence: str
) -> None:
    outcome = command.bare(*arguments)
    assert outcome.code == 1
    assert sentence in outcome.err
    assert_one_line(outcome.err)


def test_serve_hands_over_its_flags(command: CommandLine, composition: FakeComposition) -> None:
    flags = [
        "--port",
        "0",
        "--model",
        "some/model",
        "--min-new-pairs",
        "7",
        "--undo-window",
        "0",
        "--gate",
        "manual",
    ]
    assert command.run("serve", *flags).code == 0
    (settings,) = composition.served
    assert (settings.port, settings.model, settings.min_new_pairs, settings.undo_window_s, settings.gate) == (
        *(0, "some/model", 7, 0),
        "manual",
    )
    assert settings.storage == command.storage
    # What was not given keeps its default.
    assert settings.host == "127.0.0.1"


def test_flags_win_over_the_environment(
    command: CommandLine, composition: FakeComposition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPO_STUDIO_PORT", "1111")
    monkeypatch.setenv("DPO_STUDIO_MODEL", "from-environment")
    command.run("serve", "--port", "2222")
    assert (composition.served[0].port, composition.served[0].model) == (2222, "from-environment")


def test_an_error_of_several_lines_is_still_one_line(
    command: CommandLine, composition: FakeComposition
) -> None:
    composition.serving_raises = SettingsError("first\n  second")
    outcome = command.run("serve")
    assert (outcome.code, outcome.err) == (1, "dpo-studio: first second\n")


def test_ctrl_c_is_130_without_a_traceback(command: CommandLine, composition: FakeComposition) -> None:
    composition.serving_raises = KeyboardInterrupt()
    outcome = command.run("serve")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_a_bug_is_one_line_and_its_traceback_is_there_for_the_asking(
    command: CommandLine, composition: FakeComposition, monkeypatch: pytest.MonkeyPatch
) -> None:
    composition.serving_raises = ZeroDivisionError("our bug")
    outcome = command.run("serve")
    assert outcome.code == 1
    assert "ZeroDivisionError: our bug" in outcome.err
    assert_one_line(outcome.err)
    monkeypatch.setenv("DPO_STUDIO_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["serve"])


def test_a_reader_that_goes_away_causes_no_complaint() -> None:
    program = (
        "import sys; from dpo_studio import cli\n"
        "cli.typer.echo = lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError())\n"
        "sys.exit(cli.main(['--version']))"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert (result.returncode, result.stderr) == (1, "")


def assert_one_line(text: str) -> None:
    """Exactly one line that says who speaks."""
    assert text.startswith("dpo-studio: ")
    assert text.count("\n") == 1 and text.endswith("\n")
