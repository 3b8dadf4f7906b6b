"""Files are whole or absent; names under storage/ are spelled in one place."""

import hashlib
import json
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio import files
from dpo_studio.paths import RoundPaths, StoragePaths

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "\\ud" not in json.dumps(value))


def test_a_write_replaces_the_whole_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    files.write_bytes(path, b"first")
    files.write_bytes(path, b"2")
    assert path.read_bytes() == b"2"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, step: str) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    target = "os.fsync" if step == "fsync" else "pathlib.Path.replace"
    with mock.patch(target, side_effect=OSError("disk")), pytest.raises(OSError, match="disk"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_data_is_synced_before_the_name_changes_and_the_folder_after(tmp_path: Path) -> None:
    """ALICE: the order in which a crash cannot leave half a file."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").is_dir()
        steps.append("folder" if is_folder else "file")
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    with mock.patch("os.fsync", synced), mock.patch("pathlib.Path.replace", replaced):
        files.write_bytes(tmp_path / "file", b"x")
    assert steps == ["file", "rename", "folder"]


@given(values)
def test_canonical_json_is_one_spelling(value: object) -> None:
    text = files.canonical_json(value)
    assert json.loads(text) == value
    assert files.canonical_json(json.loads(text)) == text
    assert "\n" not in text


def test_canonical_json_sorts_keys_and_refuses_nan() -> None:
    assert files.canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json(float("nan"))


def test_json_and_jsonl_come_back(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": [1, "ü"]})
    assert files.read_json(tmp_path / "a.json") == {"b": [1, "ü"]}
    rows = [{"line": "with\nnewline"}, {"n": 2}]
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    assert list(files.read_jsonl(tmp_path / "a.jsonl")) == rows


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    files.append_jsonl(path, {"step": 1})
    files.append_jsonl(path, {"step": 2})
    with path.open("ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [row["step"] for row in files.read_jsonl(path)] == [1, 2]


def test_hashes_carry_their_algorithm(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"b")
    (tmp_path / "a").write_bytes(b"a")
    expected = f"sha256:{hashlib.sha256(b'a').hexdigest()}"
    assert files.sha256_of_bytes(b"a") == files.sha256_of_file(tmp_path / "a") == expected
    assert list(files.sha256_of_tree(tmp_path)) == ["a", "sub/b"]


def test_a_folder_is_published_in_one_step_and_never_replaced(tmp_path: Path) -> None:
    final = tmp_path / "v1"
    for content in ("one", "two"):
        temporary = files.temporary_name(final)
        temporary.mkdir()
        (temporary / "file").write_text(content)
        if content == "one":
            files.publish_folder(temporary, final)
        else:
            with pytest.raises(FileExistsError):
                files.publish_folder(temporary, final)
    assert (final / "file").read_text() == "one"
    assert files.find_temporaries(tmp_path) == [files.temporary_name(final)]


def test_every_name_is_below_the_root() -> None:
    paths = StoragePaths(Path("/data"))
    assert paths.database == Path("/data/studio.db")
    assert paths.version("v7") == Path("/data/versions/v7")
    assert paths.round(7) == RoundPaths(Path("/data/rounds/0007"))
    assert paths.round(12345).root.name == "12345"
    folder = paths.round(7)
    names = {folder.job, folder.train, folder.heldout, folder.progress, folder.report, folder.adapter}
    names |= {folder.log, folder.cancel}
    assert len(names) == 8
    assert all(path.parent == folder.root for path in names)
