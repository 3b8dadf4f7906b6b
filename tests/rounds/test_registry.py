"""Versions appear whole or not at all; hostile adapters are refused before anything is loaded."""

import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpo_studio.domain.adapter import CONFIG_FILE, WEIGHTS_FILE
from dpo_studio.errors import Conflict, ModelError, StorageError
from dpo_studio.files import read_json, sha256_of_file, write_json
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds import registry
from dpo_studio.rounds.adapter_check import check_adapter

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NAMES = ("model.layers.0.q_proj", "model.layers.0.v_proj")
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "base_model_name_or_path": "starter",
    "auto_mapping": None,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_dora": False,
    "inference_mode": True,
}


def tensors(rank: int = 2) -> dict[str, Any]:
    random_source = np.random.default_rng(0)
    found = {}
    for name in NAMES:
        prefix = f"base_model.model.{name}"
        found[f"{prefix}.lora_A.weight"] = random_source.normal(size=(rank, 8)).astype(np.float32)
        found[f"{prefix}.lora_B.weight"] = random_source.normal(size=(6, rank)).astype(np.float32)
    return found


def write_adapter(folder: Path, *, config: dict[str, Any] | None = None, **changed: Any) -> Path:
    """A small good adapter; `changed` replaces tensors by the end of their name."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensors()
    for ending, value in changed.items():
        for name in [name for name in weights if name.split(".")[-2] == ending][:1]:
            weights[name] = value
    save_file(weights, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, CONFIG | (config or {}))
    return folder


def publish(paths: StoragePaths, source: Path, name: str = "v1", **more: Any) -> Path:
    return registry.publish(
        source,
        name=name,
        round_number=int(name[1:]),
        model="starter",
        model_sha256="sha256:m",
        tokenizer_sha256="sha256:t",
        dataset_sha256="sha256:d",
        code_version="0.1",
        now=NOW,
        paths=paths,
        **more,
    )


@pytest.fixture
def paths(tmp_path: Path) -> StoragePaths:
    return StoragePaths(tmp_path / "storage")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def test_a_published_version_verifies_and_says_where_it_came_from(paths: StoragePaths, source: Path) -> None:
    folder = publish(paths, source)
    manifest = registry.verify(folder)
    assert folder == paths.version("v1")
    assert (manifest.version, manifest.round, manifest.dataset_sha256) == ("v1", 1, "sha256:d")
    assert manifest.created_at == "2026-03-01T12:00:00+00:00"
    assert manifest.files == {name: sha256_of_file(source / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    assert [path.name for path in paths.versions.iterdir()] == ["v1"]


def test_a_name_is_published_once(paths: StoragePaths, source: Path) -> None:
    publish(paths, source)
    before = registry.verify(paths.version("v1"))
    with pytest.raises(Conflict, match="v1 exists"):
        publish(paths, source)
    assert registry.verify(paths.version("v1")) == before


@pytest.mark.parametrize("name", ["base", "v0", "v01", "../v1", "v1/..", "v1\n", "V1", "v9999999999"])
def test_only_plain_version_names_are_published(paths: StoragePaths, source: Path, name: str) -> None:
    with pytest.raises(ModelError, match="a name like v7"):
        registry.publish(
            source,
            name=name,
            round_number=1,
            model="",
            model_sha256="",
            tokenizer_sha256="",
            dataset_sha256="",
            code_version="",
            now=NOW,
            paths=paths,
        )
    assert not paths.root.exists()


def test_the_adapter_must_be_the_one_that_the_worker_reported(paths: StoragePaths, source: Path) -> None:
    reported = {name: sha256_of_file(source / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    write_adapter(source, lora_A=np.zeros((2, 8), np.float32))
    with pytest.raises(ModelError, match="not the one that its worker reported"):
        publish(paths, source, expected_sha256=reported)
    assert list(paths.versions.iterdir()) == []


def test_a_disk_that_refuses_is_a_sentence_and_leaves_nothing(
    paths: StoragePaths, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry, "publish_folder", refuse)
    with pytest.raises(StorageError, match="No space left"):
        publish(paths, source)
    assert list(paths.versions.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(data)


def zero_the_tail(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-64] + bytes(64))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def replace_by_link(path: Path) -> None:
    moved = path.rename(path.parent.parent / f"moved-{path.name}")
    path.symlink_to(moved)


@pytest.mark.parametrize("harm", [flip_a_bit, zero_the_tail, truncate, replace_by_link, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_published_file_that_changed_is_found(
    paths: StoragePaths, source: Path, harm: Callable[[Path], None], name: str
) -> None:
    """safetensors itself loads bit flips and zeroed tails without a word."""
    folder = publish(paths, source)
    harm(folder / name)
    with pytest.raises(ModelError):
        registry.verify(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "v2"},
        {"files": {}},
        {"files": {"../../etc/passwd": "sha256:0"}},
        {"extra": 1},
        {"round": "one"},
    ],
)
def test_a_manifest_that_was_edited_is_refused(
    paths: StoragePaths, source: Path, change: dict[str, Any]
) -> None:
    folder = publish(paths, source)
    manifest = folder / "MANIFEST.json"
    write_json(manifest, read_json(manifest) | change)
    with pytest.raises(ModelError):
        registry.verify(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(paths: StoragePaths, source: Path, text: bytes) -> None:
    folder = publish(paths, source)
    (folder / "MANIFEST.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"MANIFEST.json|unreadable"):
        registry.verify(folder)


def test_another_versions_folder_under_this_name_is_refused(paths: StoragePaths, source: Path) -> None:
    publish(paths, source).rename(paths.version("v2"))
    with pytest.raises(ModelError, match="expected the manifest of v2"):
        registry.verify(paths.version("v2"))


def test_an_absent_or_linked_folder_is_refused(paths: StoragePaths, source: Path) -> None:
    folder = publish(paths, source)
    (paths.versions / "v2").symlink_to(folder)
    for name in ("v2", "v3"):
        with pytest.raises(ModelError, match="expected a folder"):
            registry.verify(paths.version(name))


@pytest.mark.parametrize(
    "config",
    [
        {"auto_mapping": {"base_model_class": "Tripwire", "parent_library": "tripwire_module"}},
        {"unheard_of": 1},
        {"peft_type": "PREFIX_TUNING"},
        {"peft_type": None},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"use_dora": True},
        {"megatron_config": {"a": 1}},
        {"layer_replication": [[0, 1]]},
        {"target_modules": ["(a+)+$"]},
        {"target_modules": "../x"},
        {"target_modules": {"a": 1}},
        {"rank_pattern": {"(a+)+$": 2}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": -1}},
        {"init_lora_weights": {"a": 1}},
        {"r": 0},
        {"r": 513},
        {"r": "2"},
        {"r": True},
        {"r": 3},
        {"lora_alpha": float("1e9")},
    ],
)
def test_a_hostile_config_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_adapter(tmp_path / "adapter", config=config)
    with pytest.raises(ModelError):
        check_adapter(folder)
    assert "tripwire_module" not in sys.modules


@pytest.mark.parametrize(
    "changed",
    [
        {"lora_A": np.full((2, 8), np.nan, np.float32)},
        {"lora_B": np.full((6, 2), np.inf, np.float32)},
        {"lora_B": np.full((6, 2), -np.inf, np.float16)},
        {"lora_A": np.zeros((3, 8), np.float32)},
        {"lora_A": np.zeros((2, 8, 1), np.float32)},
        {"lora_A": np.zeros((2, 8), np.int32)},
    ],
)
def test_tensors_that_are_not_finite_factors_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = write_adapter(tmp_path / "adapter", **changed)
    with pytest.raises(ModelError):
        check_adapter(folder)


def write_bfloat16(path: Path, bits: int) -> None:
    """A safetensors file by hand: numpy has no bfloat16."""
    header, data = {}, b""
    for name, tensor in tensors().items():
        values = np.full(tensor.size, bits, np.uint16).tobytes()
        spans = [len(data), len(data) + len(values)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": spans}
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("bits", "is_finite"), [(0x3F80, True), (0x7F7F, True), (0x7F80, False), (0xFFC0, False)]
)
def test_bfloat16_is_read_and_checked_too(tmp_path: Path, bits: int, is_finite: bool) -> None:
    folder = write_adapter(tmp_path / "adapter")
    write_bfloat16(folder / WEIGHTS_FILE, bits)
    if is_finite:
        check_adapter(folder)
    else:
        with pytest.raises(ModelError, match="NaN or infinity"):
            check_adapter(folder)


def test_one_factor_without_the_other_and_foreign_tensors_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    weights = tensors()
    del weights[f"base_model.model.{NAMES[0]}.lora_B.weight"]
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="both lora_A and lora_B"):
        check_adapter(folder)
    save_file(tensors() | {"model.embed_tokens.weight": np.zeros((2, 2), np.float32)}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="embed_tokens"):
        check_adapter(folder)
    save_file({}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="found none"):
        check_adapter(folder)


@pytest.mark.parametrize("extra", ["adapter_model.bin", "pytorch_model.pt", "code.py", ".hidden"])
def test_any_other_file_is_refused(paths: StoragePaths, source: Path, extra: str) -> None:
    (source / extra).write_bytes(b"x")
    with pytest.raises(ModelError, match="expected only"):
        publish(paths, source)
    assert not paths.versions.exists()


def test_pickled_weights_alone_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError):
        check_adapter(folder)


def test_a_link_is_never_followed(paths: StoragePaths, source: Path, tmp_path: Path) -> None:
    secret = (source / WEIGHTS_FILE).rename(tmp_path / "secret")
    (source / WEIGHTS_FILE).symlink_to(secret)
    with pytest.raises(ModelError, match="found a link"):
        publish(paths, source)
    assert not paths.versions.exists()


def test_a_boot_sweeps_what_a_crash_left_and_sets_unnamed_versions_aside(
    paths: StoragePaths, source: Path
) -> None:
    publish(paths, source, "v1")
    publish(paths, source, "v2")
    (paths.versions / ".tmp-4711-v3").mkdir()
    (paths.versions / ".tmp-4711-v3" / WEIGHTS_FILE).write_bytes(b"half")
    paths.rounds.mkdir()
    (paths.rounds / ".tmp-1-x").write_bytes(b"")
    swept = registry.sweep(paths, named={"v1"})
    assert [path.name for path in swept] == [".tmp-4711-v3", ".tmp-1-x", "v2"]
    assert sorted(path.name for path in paths.versions.iterdir()) == [".aside-v2-1", "v1"]
    publish(paths, source, "v2")
    registry.sweep(paths, named={"v1"})
    assert sorted(path.name for path in paths.versions.iterdir()) == [".aside-v2-1", ".aside-v2-2", "v1"]
    assert registry.sweep(paths, named={"v1"}) == []


def test_a_sweep_of_an_empty_storage_finds_nothing(paths: StoragePaths) -> None:
    assert registry.sweep(paths, named=()) == []


@pytest.mark.integration
def test_kill_9_during_publishing_never_shows_half_a_version(paths: StoragePaths, source: Path) -> None:
    """Twelve publishers killed at random moments: whatever is visible verifies."""
    rng = random.Random(3)
    number = 0
    for _ in range(12):
        pid = os.fork()
        if pid == 0:
            try:
                for step in range(1, 200):
                    publish(paths, source, f"v{number + step}")
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.01, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        names = [path.name for path in paths.versions.glob("v*")]
        for name in names:
            registry.verify(paths.version(name))
        number = max((int(name[1:]) for name in names), default=number)
    assert number > 0
    registry.sweep(paths, named=names)
    assert list(paths.versions.glob(".*")) == []
