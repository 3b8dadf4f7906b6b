"""Commands on the database alone, against a real one."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dpo_studio.domain.round import TrainSettings
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds import registry
from dpo_studio.store import rounds, versions
from dpo_studio.store.database import Database
from tests.cli.conftest import CommandLine
from tests.services.adapters import write_adapter

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
PAIR = {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(PAIR) + "\n", "utf-8")
    return file


@pytest.fixture
def published(command: CommandLine, tmp_path: Path) -> StoragePaths:
    """A storage with version v1, live."""
    paths = StoragePaths(command.storage)
    write_adapter(tmp_path / "adapter")
    database = Database(paths.database)
    paths.root.mkdir()
    database.open()
    with database.write() as session:
        number = rounds.create_round("test", TrainSettings(), now=NOW, session=session).number
        registry.publish(
            tmp_path / "adapter",
            name="v1",
            round_number=number,
            model="fake",
            model_sha256="sha256:model",
            tokenizer_sha256="sha256:tokenizer",
            dataset_sha256="sha256:data",
            code_version="0",
            now=NOW,
            paths=paths,
        )
        versions.add_version("v1", round_number=number, now=NOW, session=session)
        versions.set_live("v1", expected_serial=0, actor="test", now=NOW, session=session)
    database.close()
    return paths


def test_imported_prompts_are_counted_once(command: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "One?"}\nTwo?\n\n{"prompt": "One?"}\n', "utf-8")
    assert command.run("import-prompts", str(file)).out == "2 new prompts, 1 already here\n"
    assert command.run("import-prompts", str(file)).out == "0 new prompts, 3 already here\n"


def test_pairs_come_out_as_they_went_in(command: CommandLine, jsonl: Path, tmp_path: Path) -> None:
    assert command.run("import-pairs", str(jsonl)).out == "1 new preference\n"
    out = tmp_path / "out.jsonl"
    outcome = command.run("export-pairs", str(out))
    assert (outcome.code, outcome.err) == (0, "")
    row = json.loads(out.read_text("utf-8"))
    assert row["prompt"] == [{"role": "user", "content": "Tea?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Yes."}]
    assert row["rejected"] == [{"role": "assistant", "content": "No."}]


@pytest.mark.parametrize("format", ["trl", "openai", "csv", "parquet"])
def test_every_format_is_written(command: CommandLine, jsonl: Path, tmp_path: Path, format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    command.run("import-pairs", str(jsonl))
    out = tmp_path / "out"
    assert command.run("export-pairs", str(out), "--format", format).code == 0
    assert out.stat().st_size > 10


def test_a_bad_line_imports_nothing_and_is_named(command: CommandLine, jsonl: Path, tmp_path: Path) -> None:
    jsonl.write_text(json.dumps(PAIR) + '\n{"prompt": "x"}\n', "utf-8")
    outcome = command.run("import-pairs", str(jsonl))
    assert outcome.code == 1
    assert "line 2" in outcome.err
    command.run("export-pairs", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == ""


def test_bytes_that_are_not_utf8_are_named(command: CommandLine, jsonl: Path) -> None:
    jsonl.write_bytes(b"fine\n\xff\n")
    outcome = command.run("import-prompts", str(jsonl))
    assert outcome.code == 1
    assert "line 2: expected UTF-8" in outcome.err


@pytest.mark.parametrize("name", ["import-prompts", "import-pairs"])
def test_a_missing_file_is_named(command: CommandLine, name: str, tmp_path: Path) -> None:
    outcome = command.run(name, str(tmp_path / "none.jsonl"))
    assert outcome.code == 1
    assert "none.jsonl (No such file or directory)" in outcome.err


@pytest.mark.parametrize("arguments", [["versions"], ["doctor"], ["export-pairs", "out"]])
def test_a_mistyped_storage_is_refused_and_not_made(command: CommandLine, arguments: list[str]) -> None:
    outcome = command.run(*arguments)
    assert outcome.code == 1
    assert "found no studio.db" in outcome.err
    assert not command.storage.exists()


def test_an_export_that_cannot_be_written_leaves_the_old_file(
    command: CommandLine, jsonl: Path, tmp_path: Path
) -> None:
    command.run("import-pairs", str(jsonl))
    outcome = command.run("export-pairs", str(tmp_path / "missing" / "out.jsonl"))
    assert outcome.code == 1
    assert "the disk refused (No such file or directory)" in outcome.err
    assert not list(tmp_path.glob("**/.tmp-*"))


def test_versions_are_listed_with_the_live_one_marked(command: CommandLine, published: StoragePaths) -> None:
    del published
    lines = command.run("versions").out.splitlines()
    assert lines[0] == "  base"
    assert lines[1].startswith("* v1     round 1 · ")
    assert lines[1].endswith("2026-01-02 03:04 UTC")


def test_doctor_is_content_with_a_whole_studio(command: CommandLine, published: StoragePaths) -> None:
    del published
    outcome = command.run("doctor")
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("healthy\n")
    assert "synchronous=FULL on, foreign keys on" in outcome.out
    assert "integrity ok, 0 broken references" in outcome.out


def test_doctor_finds_a_damaged_version(command: CommandLine, published: StoragePaths) -> None:
    weights = published.version("v1") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    outcome = command.run("doctor")
    assert outcome.code == 1
    assert "problem   version v1:" in outcome.out
    assert "found 1" in outcome.err


def test_export_model_copies_the_published_adapter(
    command: CommandLine, published: StoragePaths, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "adapter"
    outcome = command.run("export-model", "v1", str(target))
    assert (outcome.code, outcome.out) == (0, f"{target}: v1\n")
    source = published.version("v1")
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }
    assert os.listdir(target.parent) == ["adapter"]


@pytest.mark.parametrize("name", ["v9", "../versions/v1", "v1/../v1", "..", "", "/etc", ".", "v1\0"])
def test_export_model_takes_published_names_only(
    command: CommandLine, published: StoragePaths, tmp_path: Path, name: str
) -> None:
    del published
    outcome = command.run("export-model", name, str(tmp_path / "target"))
    assert outcome.code == 1
    assert "expected base or a published version" in outcome.err
    assert not (tmp_path / "target").exists()


def test_export_model_refuses_a_damaged_version(
    command: CommandLine, published: StoragePaths, tmp_path: Path
) -> None:
    (published.version("v1") / "adapter_config.json").write_text("{}")
    outcome = command.run("export-model", "v1", str(tmp_path / "target"))
    assert outcome.code == 1
    assert not (tmp_path / "target").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_export_model_never_touches_what_exists(
    command: CommandLine, published: StoragePaths, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    shutil.copytree(published.version("v1"), target)
    outcome = command.run("export-model", "v1", str(target))
    assert outcome.code == 1
    assert "does not exist yet" in outcome.err


def test_base_has_no_adapter_to_export(command: CommandLine, published: StoragePaths, tmp_path: Path) -> None:
    del published
    outcome = command.run("export-model", "base", str(tmp_path / "target"))
    assert outcome.code == 1
    assert "--merge" in outcome.err
