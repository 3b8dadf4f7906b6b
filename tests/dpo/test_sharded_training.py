"""A base whose weights are sharded among processes (FSDP2) trains the adapter that a whole one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models import make_tiny_model


@pytest.mark.integration
def test_a_sharded_base_trains_the_same_adapter(tmp_path: Path) -> None:
    """On the CPU through gloo: half of every layer in each of two processes, gathered when it is needed."""
    model = make_tiny_model(tmp_path / "model")

    def run(size: int) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{size}.safetensors"
        command = [sys.executable, "-m", "tests.dpo.sharded_training", str(model), str(tmp_path / "meet")]
        processes = [
            subprocess.Popen([*command, str(rank), str(size), str(out)], stderr=subprocess.PIPE)
            for rank in range(size)
        ]
        try:
            errors = [process.communicate(timeout=180)[1].decode() for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert all(process.returncode == 0 for process in processes), errors
        found: dict[str, torch.Tensor] = load_file(out)
        return found

    whole, sharded = run(1), run(2)
    assert 2 * sharded.pop("held") == whole.pop("held"), "each must have held half of the layers' weights"
    assert whole["losses"][-1] < 0.5 * whole["losses"][0], "training must matter"
    # AdamW turns the last bits of small gradients into whole steps.
    torch.testing.assert_close(sharded, whole, atol=1e-3, rtol=1e-3)
