"""Settings refuse what contradicts, in a sentence that names the value."""

from pathlib import Path

import pytest

from dpo_studio.errors import SettingsError
from dpo_studio.settings import load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_are_the_starter_on_loopback() -> None:
    settings = load_settings()
    assert (settings.model, settings.host, settings.is_loopback) == ("starter", "127.0.0.1", True)


def test_flags_win_over_environment_and_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("DPO_STUDIO_PORT=1001\nDPO_STUDIO_MODEL=file\nDPO_STUDIO_DTYPE=float16\n")
    monkeypatch.setenv("DPO_STUDIO_PORT", "1002")
    monkeypatch.setenv("DPO_STUDIO_MODEL", "environment")
    settings = load_settings(port=1003, model=None)
    assert (settings.port, settings.model, settings.dtype) == (1003, "environment", "float16")


def test_the_environment_may_ask_for_4_bits_but_not_for_any_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPO_STUDIO_DTYPE", "nf4")
    assert load_settings().dtype == "nf4"
    monkeypatch.setenv("DPO_STUDIO_DTYPE", "fp4")
    with pytest.raises(SettingsError, match=r"dtype: .*'nf4', found 'fp4'"):
        load_settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_a_bind_that_others_can_reach_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="expected a loopback address"):
        load_settings(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_taken(host: str) -> None:
    assert load_settings(host=host).host == host


@pytest.mark.parametrize(
    ("flag", "value"),
    [("port", 70_000), ("gate", "maybe"), ("min_new_pairs", 0), ("heldout_share", 0.9), ("temperature", -1)],
)
def test_a_value_out_of_range_is_named(flag: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"{flag}.*{value}"):
        load_settings(**{flag: value})


def test_paths_are_absolute(tmp_path: Path) -> None:
    assert load_settings(storage=Path("here")).paths.database == tmp_path / "here" / "studio.db"
