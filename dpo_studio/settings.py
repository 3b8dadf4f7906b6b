"""Settings of one studio: flags, `DPO_STUDIO_*` environment, `.env`, in that order of precedence.

Built by the command line or a test, never at import. Refuses to exist when the values contradict each
other; the message names the value and what to do.
"""

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dpo_studio.errors import SettingsError
from dpo_studio.paths import StoragePaths

STARTER = "starter"
"""Value of `model` that names the embedded starter model."""


class Settings(BaseSettings):
    """One frozen value; every part of the studio receives what it needs from it."""

    model_config = SettingsConfigDict(
        env_prefix="DPO_STUDIO_", env_file=".env", extra="ignore", frozen=True, protected_namespaces=()
    )

    storage: Path = Path("storage")
    """Folder of all state."""
    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    """0 lets the system choose."""
    model: str = STARTER
    """`starter`, a folder, or a hub id."""
    chat_template: Path | None = None
    """A Jinja file for tokenizers without a chat template."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto"
    """`nf4`: linear layers of the base model in 4 bits, by bitsandbytes; engine and rounds alike."""
    engine_threads: int = Field(0, ge=0, le=256)
    """CPU threads of the engine; 0: all but one core, at least one (OpenMP barriers on busy cores cost
    more than the second thread gives)."""
    max_tokens: int = Field(160, ge=1, le=8192)
    """Longest answer shown on the label page."""
    temperature: float = Field(0.9, ge=0.0, le=5.0)
    ready_pairs: int = Field(3, ge=0, le=32)
    """Comparisons kept complete ahead of each active labeler."""
    min_new_pairs: int = Field(30, ge=1, le=1_000_000)
    interval_minutes: int = Field(5, ge=1, le=60 * 24 * 30)
    undo_window_s: int = Field(60, ge=0, le=86_400)
    """A vote younger than this is not trained on by schedule."""
    gate: Literal["auto", "manual"] = "auto"
    heldout_share: float = Field(0.15, ge=0.0, le=0.5)

    @model_validator(mode="after")
    def _refuse_exposure(self) -> "Settings":
        if not self.is_loopback:
            raise ValueError(
                f"host: expected a loopback address such as 127.0.0.1, found {self.host}; without accounts "
                "anyone who can reach the port would be the admin, so put it behind an SSH tunnel instead"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the bound address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def paths(self) -> StoragePaths:
        """Names below the storage folder, absolute."""
        return StoragePaths(self.storage.expanduser().resolve())


def load_settings(**flags: object) -> Settings:
    """Settings from the given flags (None means "not given"), environment and `.env`.

    Raises SettingsError with one sentence for the first value that does not fit.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        text = str(first["msg"]).removeprefix("Value error, ")
        raise SettingsError(f"{place}: {text}, found {first['input']!r}" if place else text) from error
