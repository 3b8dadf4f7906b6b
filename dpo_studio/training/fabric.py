"""The processes of one training run, through accelerate: one under `python -m`, several under
`accelerate launch`, with the same program."""

import os

from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor

from dpo_studio.dpo.world import World


class Fabric:
    """Who this process is among those that train, and on which device."""

    def __init__(self, device: str) -> None:
        """device: "auto" or a torch device; ignored among several GPUs, where each process has its own."""
        self._accelerator = Accelerator(cpu=device == "cpu")
        self._device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> str:
        """For `load_base`."""
        return self._device if self._accelerator.num_processes == 1 else str(self._accelerator.device)

    @property
    def world(self) -> World:
        """For `dpo`."""
        accelerator = self._accelerator

        def total(tensor: Tensor) -> Tensor:
            summed: Tensor = accelerator.reduce(tensor.to(accelerator.device), reduction="sum")
            return summed.to(tensor.device)

        if accelerator.num_processes == 1:
            return World()
        return World(accelerator.process_index, accelerator.num_processes, total)

    def close(self) -> None:
        """Leave the group of processes, so that none waits for this one."""
        self._accelerator.end_training()


def cpu_threads(wanted: int) -> int:
    """`wanted`, or all cores that this process may use but one (serving keeps it)."""
    return wanted or max(1, len(os.sched_getaffinity(0)) - 1)
