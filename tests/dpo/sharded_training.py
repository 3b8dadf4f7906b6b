"""Run as a program by each of several processes: train with base weights that are sharded among them.

`python -m tests.dpo.sharded_training MODEL RENDEZVOUS RANK SIZE OUT`: with one process nothing is sharded.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.evaluate import score_pairs
from dpo_studio.dpo.layouts import PREFIX_SHARED
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.trainer import Trainer
from dpo_studio.dpo.world import World
from tests.dpo.models import adapter_state, random_pairs, with_lora


def main() -> None:
    folder, rendezvous, rank, size, out = (
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        sys.argv[5],
    )
    torch.set_num_threads(1)
    model = with_lora(AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False).eval())
    world = World()
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
        mesh = init_device_mesh("cpu", (size,))
        # The adapter stays whole everywhere: its gradients are summed by the trainer.
        whole = {p for p in model.parameters() if p.requires_grad}
        for layer in model.get_base_model().model.layers:
            fully_shard(layer, mesh=mesh, ignored_params=whole)
        world = World(rank, size, total)
    # Every process must make as many forwards as the others, which wait for its shards: equal shares.
    pairs = random_pairs([(6, 5, 7)] * 8)
    budget = MemoryBudget(18)
    with model.disable_adapter():
        reference = score_pairs(ResponseScorer(model), pairs, budget, layout=PREFIX_SHARED, world=world)
    settings = TrainSettings(epochs=3, batch_size=4, learning_rate=1e-2)
    trainer = Trainer(
        ResponseScorer(model), pairs, reference, settings, layout=PREFIX_SHARED, budget=budget, world=world
    )
    losses = [step.metrics["loss"] for step in trainer.steps()]
    if rank == 0:
        frozen = [p for p in model.get_base_model().model.layers.parameters() if not p.requires_grad]
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)
        state = {**adapter_state(model), "losses": torch.tensor(losses), "held": torch.tensor(held)}
        save_file(state, Path(out))
    if size > 1:
        dist.destroy_process_group()


def total(tensor: torch.Tensor) -> torch.Tensor:
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed


if __name__ == "__main__":
    main()
