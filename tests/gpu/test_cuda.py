"""The same promises on a GPU: bf16 by itself, answers as transformers gives them, a round that learns."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from dpo_studio.domain.chat import GenerationRequest, Message, SamplingParams
from dpo_studio.modeling.base_model import load_base
from dpo_studio.serving.adapter_slots import AdapterSlots
from dpo_studio.serving.build import build_runner
from dpo_studio.serving.engine import Engine, EngineLimits
from dpo_studio.serving.wire import Event, Finished
from tests.training.rounds import make_round, read_report, rows, worker


def test_the_device_and_its_own_dtype_are_chosen(model: Path) -> None:
    base = load_base(str(model))
    assert base.device.type == "cuda"
    assert base.dtype == (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def test_greedy_answers_equal_generate_in_fp32(model: Path) -> None:
    base = load_base(str(model), device="cuda", dtype="float32")
    slots = AdapterSlots(base.model, 2)
    built = build_runner(base, slots, max_rows=8, max_context=256)
    assert built.note == ""
    events: list[Event] = []
    chat = base.chat_format()
    engine = Engine(built.runner, slots, chat, limits=EngineLimits(), emit=events.append, draw_seed=lambda: 0)
    prompts = [(Message("user", text),) for text in ("hello", "what is tea made of?", "a b c d e f g h")]
    for number, messages in enumerate(prompts):
        sampling = SamplingParams(temperature=0, max_tokens=12)
        engine.submit(GenerationRequest(str(number), messages, "base", sampling))
    while not engine.is_idle:
        engine.step()
    ours = {event.request_id: event.completion.token_ids for event in events if isinstance(event, Finished)}
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).cuda().eval()
    for number, messages in enumerate(prompts):
        ids = torch.tensor([chat.prompt_ids(messages)], device="cuda")
        mask = torch.ones_like(ids)
        with torch.no_grad():
            out = stock.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12)
        assert list(ours[str(number)]) == out[0, ids.shape[1] :].tolist()


def test_a_round_learns_on_the_gpu(model: Path, tmp_path: Path) -> None:
    paths = make_round(tmp_path / "0001", model, train=rows(8), device="cuda")
    with worker(paths) as process:
        process.wait(timeout=120)
    report = read_report(paths)
    assert report.ok, report.reason
    assert report.metrics["loss"] < 0.69
