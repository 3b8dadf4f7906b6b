"""How training ends early."""

from dpo_studio.errors import StudioError


class TrainingFailed(StudioError):
    """Training cannot go on; the message says why in one sentence."""

    code = "training_failed"
    status = 422


class TrainingCancelled(Exception):
    """Someone asked training to stop. Not an error: nobody needs to act on it."""
