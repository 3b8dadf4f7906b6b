"""TRL's DPOTrainer on our token ids, in our order, with our schedule: what our trainer is compared with.

Only what would make the comparison unequal is overridden: tokenisation (ids come in), shuffling (the order
of `epoch_batches` comes in) and the learning rate. The steps, collation, loss and optimiser are TRL's.
trl and datasets are imported when asked for; they are no dependency of the studio.
"""

import importlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.trainer import epoch_batches, learning_rate_at

NUM_VIRTUAL_EPOCHS = 1
"""All our epochs, one after another, are a single epoch to TRL, so that the order is ours."""


@dataclass(frozen=True, slots=True)
class TrlStep:
    """One optimiser step of TRL."""

    loss: float
    grad_norm: float
    cpu_seconds: float


def trl_steps(
    model: Any,
    pairs: Sequence[TokenPair],
    settings: TrainSettings,
    initial_adapter: Mapping[str, torch.Tensor],
    folder: Path,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **options: Any,
) -> list[TrlStep]:
    """Train `model` (mutated: it gets the adapter) with TRL and return its steps, each inside `around()`.

    initial_adapter: name → value of trainable parameters, as of our model. The number of pairs must be a
    multiple of the batch size: TRL would weigh a last shorter batch otherwise. `options` go to DPOConfig.
    """
    if len(pairs) % settings.batch_size:
        raise ValueError(f"{len(pairs)} pairs: expected a multiple of the batch size {settings.batch_size}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _build(model, pairs, settings, folder, options)
        trainer.around = around
        trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        if set(trained) != set(initial_adapter):
            raise ValueError("TRL was expected to train the same parameters as we do, and trains others")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(initial_adapter[name])
        trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return [
        TrlStep(loss, row["grad_norm"], seconds)
        for loss, row, seconds in zip(trainer.losses, logged, trainer.cpu_seconds, strict=True)
    ]


def _build(
    model: Any, pairs: Sequence[TokenPair], settings: TrainSettings, folder: Path, options: dict[str, Any]
) -> Any:
    trl: Any = importlib.import_module("trl")
    datasets: Any = importlib.import_module("datasets")
    order = [index for batches in epoch_batches(len(pairs), settings) for batch in batches for index in batch]
    rows = [
        {
            "prompt_ids": list(pairs[index].prompt),
            "chosen_ids": list(pairs[index].chosen),
            "rejected_ids": list(pairs[index].rejected),
        }
        for index in order
    ]
    config = trl.DPOConfig(
        **{
            "output_dir": str(folder),
            "beta": settings.beta,
            "learning_rate": settings.learning_rate,
            "max_grad_norm": settings.max_grad_norm,
            "per_device_train_batch_size": settings.batch_size,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": NUM_VIRTUAL_EPOCHS,
            "max_length": settings.max_length,
            "use_cpu": not torch.cuda.is_available(),
            "bf16": False,
            "optim": "adamw_torch",
            "weight_decay": 0.0,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": settings.seed,
            **options,
        }
    )
    adapter = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return _trainer_class(trl, settings)(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=_no_tokenizer(),
        peft_config=adapter,
    )


def _trainer_class(trl: Any, settings: TrainSettings) -> Any:
    class OrderedTrainer(trl.DPOTrainer):  # type: ignore[misc]
        """TRL's trainer with the data, the order and the schedule of ours, and a clock around its steps."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def factor(step: int) -> float:
                return learning_rate_at(step, num_training_steps, settings) / settings.learning_rate

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            return self.lr_scheduler

        def train(self, *arguments: Any, **options: Any) -> Any:
            self.cpu_seconds: list[float] = []
            # What is logged is rounded.
            self.losses: list[float] = []
            self.add_callback(_clock(self.cpu_seconds))
            return super().train(*arguments, **options)

        def training_step(self, *arguments: Any, **options: Any) -> Any:
            with self.around():
                loss = super().training_step(*arguments, **options)
            self.losses.append(float(loss))
            return loss

    return OrderedTrainer


def _clock(seconds: list[float]) -> Any:
    transformers: Any = importlib.import_module("transformers")

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """CPU seconds of each step, optimiser included, data loading too."""

        def __init__(self) -> None:
            self._started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._started = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.process_time() - self._started)

    return Clock()


def _no_tokenizer() -> Any:
    """TRL asks for one, and for its padding token; nothing is tokenised with it."""
    transformers: Any = importlib.import_module("transformers")
    tokenizers: Any = importlib.import_module("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
