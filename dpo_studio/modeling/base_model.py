"""The base model: found, loaded onto one device, and identified.

Everything that AutoModelForCausalLM can load from safetensors, by folder, by hub id, or "starter" for the
embedded one. Code that comes with a model is never run. A model whose weights are incomplete is refused:
transformers would fill the gaps with random numbers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpo_studio import starter
from dpo_studio.errors import ModelError
from dpo_studio.modeling.chat_format import ChatFormat
from dpo_studio.modeling.nf4 import NF4, nf4_config, refuse_quantised, settle
from dpo_studio.modeling.weights import WeightFiles, inspect_weights, weights_sha256

STARTER = "starter"
_SMALL_MODEL = 1_000_000_000
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class BaseModel:
    """A loaded model with frozen weights, in eval mode."""

    model: Any
    tokenizer: Any
    source: str
    model_sha256: str
    tokenizer_sha256: str
    device: torch.device
    dtype: torch.dtype
    """Of activations, embeddings and output head."""
    precision: str
    """How the weights are held: a dtype's name, or `nf4/` and the name of the dtype they compute in."""
    context_length: int
    num_parameters: int
    """Of the model as it was trained: one packed in 4 bits has as many."""

    def chat_format(self) -> ChatFormat:
        """The format for this model, whose generation config may name further ends of a turn."""
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        extra = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return ChatFormat(self.tokenizer, extra_eos_ids=extra)


def load_base(
    source: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str | None = None,
    on_progress: Progress | None = None,
) -> BaseModel:
    """Load `source`. `chat_template` is a template's text, or the path of a file with one.

    dtype "auto": on CUDA bfloat16 where the device has it, else float16; on CPU float32 when the file is
    float32 or the model has at most 1B parameters, else bfloat16. "nf4": linear layers in 4 bits, computing
    in bfloat16 or float16 on CUDA as above, in float32 on CPU. Raises ModelError with one sentence.
    """
    report = on_progress or _ignore
    report(0.02, f"Looking for {source}")
    folder = _find(source, report)
    weights = inspect_weights(folder)
    place = _choose_device(device)
    kind = _choose_dtype(dtype, place, weights)
    name = str(kind).removeprefix("torch.")
    report(0.1, "Reading the tokenizer")
    tokenizer = _load_tokenizer(folder, chat_template)
    report(0.2, f"Loading {weights.num_parameters / 1e6:.1f}M weights")
    model = _load_model(folder, kind, place, is_nf4=dtype == NF4)
    report(0.8, "Checking the weights")
    base = BaseModel(
        model=model,
        tokenizer=tokenizer,
        source=source,
        model_sha256=weights_sha256(folder, weights),
        tokenizer_sha256=_tokenizer_sha256(tokenizer),
        device=place,
        dtype=kind,
        precision=f"{NF4}/{name}" if dtype == NF4 else name,
        context_length=_context_length(model.config, tokenizer),
        num_parameters=model.num_parameters(),
    )
    base.chat_format()
    report(0.9, "Loaded")
    return base


def _ignore(_fraction: float, _text: str) -> None:
    pass


def _find(source: str, report: Progress) -> Path:
    if source == STARTER:
        folder: Path = starter.model_dir()
    else:
        folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model: expected a folder with config.json, found none in {folder}; check the path"
            )
        return folder
    looks_like_hub_id = source.count("/") <= 1 and not source.startswith((".", "~", "/"))
    if source == STARTER or not looks_like_hub_id:
        raise ModelError(f"model: expected a folder with a model, found nothing at {folder}; check the path")
    report(0.05, f"Fetching {source} from the Hugging Face hub")
    try:
        # Folders inside a repository hold other formats of the same weights.
        fetched = snapshot_download(source, allow_patterns=_HUB_PATTERNS, ignore_patterns=["*/*"])
    except Exception as error:  # any network, cache or permission failure of a third-party client
        raise ModelError(
            f"model: expected a folder or a hub id, found {source!r}, which is no folder here and cannot be "
            f"fetched ({_first_line(error)}); check the name and the network"
        ) from error
    return Path(fetched)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        # Touching the device is the only check that covers a missing driver and a wrong index alike.
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device: expected auto, cpu or a CUDA device of this machine, found {device!r} "
            f"({_first_line(error)})"
        ) from error
    return chosen


def _choose_dtype(dtype: str, device: torch.device, weights: WeightFiles) -> torch.dtype:
    if dtype not in ("auto", NF4):
        if dtype not in _DTYPES:
            raise ModelError(f"dtype: expected auto, nf4 or one of {sorted(_DTYPES)}, found {dtype!r}")
        return _DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype == NF4 or weights.dtype == "float32" or weights.num_parameters <= _SMALL_MODEL:
        return torch.float32
    return torch.bfloat16


def _load_tokenizer(folder: Path, chat_template: str | None) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # foreign files can make the loader raise anything
        raise ModelError(
            f"tokenizer: expected one that transformers can read, found {folder} ({_first_line(error)})"
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"tokenizer: expected a chat template, found none in {folder}; give one with --chat-template FILE"
        )
    return tokenizer


def _template_text(chat_template: str) -> str:
    # Every template has a tag or an expression, and no sane path has.
    if "{{" in chat_template or "{%" in chat_template:
        return chat_template
    try:
        return Path(chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"chat_template: expected a readable Jinja file, found {chat_template} ({_first_line(error)})"
        ) from error


def _load_model(folder: Path, dtype: torch.dtype, device: torch.device, *, is_nf4: bool) -> Any:
    options: dict[str, Any] = {"trust_remote_code": False}
    if is_nf4:
        options["quantization_config"] = nf4_config(dtype)
    if is_nf4 or device.type != "cpu":
        # Weights go straight to the device instead of through a second copy in memory. Without a map, 4-bit
        # ones would go to a CUDA device, wanted or not.
        options["device_map"] = {"": device}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        refuse_quantised(config, folder, is_nf4=is_nf4)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        smaller = "a smaller model" if is_nf4 else "a smaller model, --dtype nf4 (4 bits)"
        raise ModelError(
            f"model: expected {folder} to fit on {device}, found too little memory; choose {smaller} "
            "or another --device"
        ) from error
    except Exception as error:  # foreign files can make the loader raise anything
        raise ModelError(
            f"model: expected one that transformers can load as a causal language model, found {folder} "
            f"({_first_line(error)})"
        ) from error
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise ModelError(
            f"model: expected all weights in {folder}, found {len(absent)} missing or of another shape, "
            f"{absent[0]} first; fetch the model again"
        )
    if is_nf4:
        settle(model, folder)
    model.requires_grad_(False)
    return model.eval()


def _tokenizer_sha256(tokenizer: Any) -> str:
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(b"\n" + str(tokenizer.chat_template).encode())
    return f"sha256:{digest.hexdigest()}"


def _context_length(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None), getattr(text, "n_positions", None)]
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        # Beyond this length these scale all positions anew, which would move rows that are half done.
        limits.append(rope.get("original_max_position_embeddings"))
    limits.append(getattr(tokenizer, "model_max_length", None))
    known = [int(limit) for limit in limits if limit and limit < 10_000_000]
    return min(known, default=2048)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
