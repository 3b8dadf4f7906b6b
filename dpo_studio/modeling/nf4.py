"""A base model in 4 bits: bitsandbytes NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314).

Linear layers are packed; the output head and the embeddings stay as they are. Refused: a machine without
bitsandbytes, a folder that is quantised already, and a model in which nothing can be packed. A forward
gives the same numbers whether gradients are wanted or not, on every device.
"""

import importlib
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from dpo_studio.errors import ModelError

NF4 = "nf4"


def quiet_bitsandbytes() -> None:
    """Call before anything imports it, as peft does wherever it is installed.

    On a CPU with AVX512-BF16 it then regrets that it found no kernel to download; none is used here.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def nf4_config(compute: torch.dtype) -> BitsAndBytesConfig:
    """What `from_pretrained` needs. compute: dtype of products. Raises ModelError without bitsandbytes."""
    quiet_bitsandbytes()
    try:
        importlib.import_module("bitsandbytes")
    # A library built for another CUDA version can raise more than ImportError.
    except Exception as error:
        raise ModelError(
            "dtype: nf4 needs bitsandbytes, which is not installed or does not load here; run pip install "
            "'dpo-studio[nf4]' or choose another --dtype"
        ) from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def refuse_quantised(config: Any, folder: Path, *, is_nf4: bool) -> None:
    """Raise ModelError for weights that are in 4 or 8 bits on disk where ours could not be told from them."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    # Folders written before methods had names say only how many bits, and load all the same.
    is_old = any(found.get(name) for name in ("load_in_4bit", "load_in_8bit"))
    method = "bitsandbytes" if is_old else str(found.get("quant_method"))
    if is_nf4 or "bitsandbytes" in method:
        raise ModelError(
            f"model: expected weights that are not quantised yet, found {method} in {folder}; give the model "
            "that they were made from, with --dtype nf4 to load it in 4 bits"
        )


def settle(model: Any, folder: Path) -> None:
    """Make a loaded model fit for training and serving alike. Raises ModelError when nothing was packed.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks a layer at its first forward without gradients: the
    scales are rounded to bfloat16, and products of a repacked layer have no gradient at all, so an adapter
    below it would learn nothing from them, without an error. Such layers are told not to.
    """
    from bitsandbytes.nn import Linear4bit

    packed = [module for module in model.modules() if isinstance(module, Linear4bit)]
    if not packed:
        raise ModelError(
            f"dtype: expected linear layers that nf4 can pack, found none in {folder}; choose another --dtype"
        )
    assert not isinstance(model.get_output_embeddings(), Linear4bit)
    for module in packed:
        module.support_avx512bf16_for_cpu = False
