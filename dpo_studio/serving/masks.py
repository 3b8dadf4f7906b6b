"""4D attention masks for rows of different lengths.

transformers takes a ready 4D mask as it is. Models with two kinds of layers want a dict of both; eager
attention adds the mask, so it must be a float (a bool mask would silently be added as 0 and 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

FULL = "full_attention"
SLIDING = "sliding_attention"

Mask = torch.Tensor | Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class MaskStyle:
    """What masks one model expects."""

    kinds: tuple[str, ...]
    window: int
    """Tokens that a sliding layer sees, itself included; 0 when no layer slides."""
    wants_dict: bool
    is_float: bool
    dtype: torch.dtype


def mask_style(config: Any, dtype: torch.dtype) -> MaskStyle | None:
    """The style for a model's config; None for kinds of attention that a slot cache cannot serve."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None) or 0
    layer_types = getattr(text, "layer_types", None)
    kinds = tuple(sorted(set(layer_types))) if layer_types else (SLIDING if window else FULL,)
    if not set(kinds) <= {FULL, SLIDING} or (SLIDING in kinds and not window):
        return None
    wants_dict = bool(layer_types) and SLIDING in kinds
    # A model that names its layer types looks up both, whether or not it has layers of both.
    wanted = (FULL, SLIDING) if wants_dict else kinds
    is_float = text._attn_implementation != "sdpa"
    return MaskStyle(wanted, window, wants_dict, is_float, dtype)


def causal_mask(style: MaskStyle, positions: torch.Tensor, width: int) -> Mask:
    """Masks (batch, 1, query, width) for queries at `positions`, (batch, query), over `width` tokens."""
    query = positions[:, None, :, None]
    key = torch.arange(width, device=positions.device)
    full = key <= query
    masks = {FULL: full, SLIDING: full & (key > query - style.window)}
    chosen = {kind: _as_float(masks[kind], style) for kind in style.kinds}
    return chosen if style.wants_dict else chosen[style.kinds[0]]


def _as_float(mask: torch.Tensor, style: MaskStyle) -> torch.Tensor:
    if not style.is_float:
        return mask
    lowest = torch.finfo(style.dtype).min
    return torch.zeros(mask.shape, dtype=style.dtype, device=mask.device).masked_fill(~mask, lowest)
