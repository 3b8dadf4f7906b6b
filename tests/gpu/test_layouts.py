"""The variable-length kernel and the layouts on CUDA, in the precision they are made for."""

from typing import Any

import pytest
import torch

from dpo_studio.dpo.batches import SegmentTable
from dpo_studio.dpo.layouts import PACKED, PADDED, PREFIX_SHARED, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.segment_attention import _can_use_varlen, attend_segments
from dpo_studio.dpo.self_check import choose_layout
from tests.dpo.models import load_tiny, random_rankings, with_lora
from tests.dpo.test_segment_attention import MODULE, SEGMENTS

# The last is a ranking of four.
PAIRS = random_rankings([(20, 30, 12), (3, 1, 4), (11, 7, 2), (9, 12, 3, 8, 5)])


@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_agrees_with_one_segment_at_a_time(window: int | None) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the kernel needs Ampere or later")
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((1, 4, 23, 64), (1, 2, 23, 64), (1, 2, 23, 64))
    tensors = [torch.randn(shape, device="cuda", generator=generator).requires_grad_() for shape in shapes]
    query, key, value = (tensor.bfloat16() for tensor in tensors)
    assert _can_use_varlen(query, value, None)
    options: dict[str, Any] = {"scaling": 0.1, "sliding_window": window}
    options["dpo_segments"] = SegmentTable(SEGMENTS)
    kernel, _ = attend_segments(MODULE, query, key, value, None, **options)
    # Its own table: masks are kept in the precision that they were first asked for.
    options["dpo_segments"] = SegmentTable(SEGMENTS)
    plain, _ = attend_segments(MODULE, tensors[0], tensors[1], tensors[2], None, **options)
    torch.testing.assert_close(kernel.float(), plain, atol=2e-2, rtol=2e-2)
    found = torch.autograd.grad(kernel.float().square().sum(), tensors)
    expected = torch.autograd.grad(plain.square().sum(), tensors)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 2e-2 * other.norm()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gemma3_text"])
def test_float32_layouts_agree(tmp_path: Any, architecture: str) -> None:
    scorer = ResponseScorer(with_lora(load_tiny(tmp_path, architecture).cuda(), is_perturbed=True))
    with torch.no_grad():
        expected = pair_logps(scorer, PAIRS, PADDED)
        for layout in (PACKED, PREFIX_SHARED):
            found = pair_logps(scorer, PAIRS, layout)
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_bf16_takes_the_cheapest_layout(tmp_path: Any) -> None:
    model = with_lora(load_tiny(tmp_path).bfloat16().cuda())
    choice = choose_layout(model, PAIRS)
    assert choice.layout is PREFIX_SHARED, choice.reasons
