"""`dpo-studio export-model`: a version as a folder for other programs.

Without merging: the plain PEFT adapter as published, checked against its manifest. Merged: full weights in
safetensors with tokenizer and chat template, loadable by transformers alone. The folder appears whole or
not at all, and an existing one is never touched.
"""

import shutil
from pathlib import Path

from dpo_studio.commands.data import opened
from dpo_studio.domain.chat import BASE
from dpo_studio.errors import BadInput, ModelError, NotFound, StorageError
from dpo_studio.files import publish_folder, temporary_name
from dpo_studio.rounds import registry
from dpo_studio.settings import Settings
from dpo_studio.store import versions


def export_model(settings: Settings, version: str, target: Path, *, is_merged: bool) -> str:
    """Write `version` to `target`; says what was written."""
    if target.exists():
        raise BadInput(f"dir: expected a folder that does not exist yet, found {target}")
    if is_merged and settings.dtype == "nf4":
        raise BadInput(
            "dtype: expected full weights to merge into, found nf4; add --dtype auto (answers will differ "
            "a little from those of the 4-bit model), or leave --merge out to write the adapter alone"
        )
    if version == BASE and not is_merged:
        raise BadInput("version: base has no adapter; add --merge to write its full weights")
    adapter = None if version == BASE else _published(settings, version)
    temporary = temporary_name(target)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if is_merged:
            _write_merged(settings, adapter, temporary)
        else:
            assert adapter is not None
            registry.verify(adapter)
            shutil.copytree(adapter, temporary)
        publish_folder(temporary, target)
    except OSError as error:
        raise StorageError(
            f"dir: expected to write {target}, but the disk refused ({error.strerror})"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{target}: {version}{' merged into its base' if is_merged and adapter else ''}"


def _published(settings: Settings, version: str) -> Path:
    # The name becomes part of a path: only one that the database knows may pass.
    with opened(settings, must_exist=True) as database, database.read() as session:
        if versions.get_version(version, session=session) is None:
            raise NotFound(f"version: expected base or a published version, found {version[:40]!r}")
    return settings.paths.version(version)


def _write_merged(settings: Settings, adapter: Path | None, folder: Path) -> None:
    # Torch is loaded only by those who merge.
    from transformers.utils.logging import disable_progress_bar

    from dpo_studio.modeling.nf4 import quiet_bitsandbytes

    # The command answers with one line; bars and words of libraries between are noise, most of all in a log.
    disable_progress_bar()
    quiet_bitsandbytes()
    from dpo_studio.modeling.adapters import load_lora
    from dpo_studio.modeling.base_model import load_base

    template = str(settings.chat_template) if settings.chat_template else None
    base = load_base(settings.model, device=settings.device, dtype=settings.dtype, chat_template=template)
    model = base.model
    if adapter is not None:
        manifest = registry.verify(adapter)
        if manifest.model_sha256 != base.model_sha256:
            raise ModelError(
                f"{manifest.version} was trained on {manifest.model}, found {settings.model}; "
                f"name the right one with --model {manifest.model}"
            )
        model = load_lora(model, adapter).merge_and_unload()
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
