"""Views as JSON values: names and shapes of the HTTP contract, pure.

Comparisons are written out blind. Numbers that JSON cannot hold (a diverged loss) become null.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from dpo_studio.domain.chat import Message
from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import StepProgress
from dpo_studio.services.data import ImportResult
from dpo_studio.services.views import (
    ComparisonView,
    GenerationView,
    RoundView,
    StudioStatus,
    TrainingView,
    VersionView,
    VoteView,
)

Json = dict[str, Any]


def comparison_json(view: ComparisonView) -> Json:
    """A complete comparison, without versions."""
    return {"id": view.id, "messages": messages_json(view.messages), "a": view.a, "b": view.b}


def vote_json(view: VoteView) -> Json:
    """The receipt; only here does the labeler learn who wrote what."""
    return {
        "vote_id": view.vote_id,
        "comparison_id": view.comparison_id,
        "choice": view.choice,
        "versions": {"a": view.version_a, "b": view.version_b},
        "is_new": view.is_new,
    }


def generation_json(view: GenerationView) -> Json:
    """One finished answer."""
    return {
        "text": view.texts[0],
        "version": view.version,
        "tokens": sum(view.num_tokens),
        "finish_reason": view.finish_reasons[0] if view.finish_reasons else None,
        "seed": view.seed,
    }


def version_json(view: VersionView) -> Json:
    """A version's row."""
    return {
        "name": view.name,
        "round": view.round,
        "created_at": time_json(view.created_at),
        "live": view.is_live,
        "loaded": view.is_loaded,
        "num_pairs": view.num_pairs,
        "heldout_accuracy": finite(view.heldout_accuracy),
    }


def round_json(view: RoundView) -> Json:
    """A round's record with its latest step."""
    return {
        "round": view.number,
        "status": view.status.value,
        "trigger": view.trigger,
        "reason": view.reason,
        "num_pairs": view.num_pairs,
        "num_train": view.num_train,
        "num_heldout": view.num_heldout,
        "settings": to_json(view.settings),
        "metrics": {name: finite(value) for name, value in view.metrics.items()},
        "verdict": to_json(view.verdict),
        "training": to_json(view.training),
        "version": view.version,
        "created_at": time_json(view.created_at),
        "started_at": time_json(view.started_at),
        "finished_at": time_json(view.finished_at),
        "progress": step_json(view.progress) if view.progress else None,
        "cancelling": view.is_cancelling,
    }


def training_json(view: TrainingView) -> Json:
    """How the next rounds train, and the preset beside it."""
    return {
        "settings": to_json(view.choice),
        "preset": to_json(view.preset),
        "is_preset": view.choice == view.preset,
    }


def steps_json(view: RoundView, steps: Sequence[StepProgress]) -> Json:
    """What a live curve needs: the round's state and the steps asked for."""
    return {
        "round": view.number,
        "status": view.status.value,
        "progress": step_json(view.progress) if view.progress else None,
        "cancelling": view.is_cancelling,
        "steps": [step_json(step) for step in steps],
    }


def step_json(step: StepProgress) -> Json:
    """One training step."""
    return {
        "phase": step.phase,
        "step": step.step,
        "num_steps": step.num_steps,
        "time": step.time,
        "metrics": {name: finite(value) for name, value in step.metrics.items()},
    }


def status_json(status: StudioStatus) -> Json:
    """The studio at a glance."""
    engine = status.engine
    return {
        "live": status.live,
        "base_model": engine.model,
        "new_pairs": status.new_pairs,
        "round": round_json(status.round) if status.round else None,
        "next_run_at": time_json(status.next_run_at),
        "schedule": to_json(status.schedule),
        "engine": {
            "state": engine.state,
            "detail": engine.detail,
            "progress": finite(engine.progress),
            "device": engine.device,
            "dtype": engine.dtype,
            "context_length": engine.context_length,
            "loaded": list(engine.loaded),
        },
        "storage": status.storage,
        "detail": status.detail,
    }


def import_json(result: ImportResult) -> Json:
    """What became of an import's lines."""
    return {"imported": result.new, "duplicates": result.duplicates, "unusable": result.unusable}


def messages_json(messages: Sequence[Message]) -> list[Json]:
    """A conversation in the shape every chat API uses."""
    return [{"role": message.role, "content": message.content} for message in messages]


def time_json(moment: datetime | None) -> str | None:
    """ISO 8601 with its offset."""
    return moment.isoformat() if moment else None


def finite(value: float | None) -> float | None:
    """`value`, or None where JSON has no such number."""
    return value if value is not None and math.isfinite(value) else None
