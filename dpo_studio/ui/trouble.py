"""From an exception to a sentence that a visitor may read."""

import logging

from dpo_studio.errors import StudioError

INTERNAL = "Something went wrong inside the studio; the log has the details."
logger = logging.getLogger(__name__)


def sentence_of(error: Exception) -> str:
    """A StudioError's own words; for a bug of ours a bare sentence, while the log gets the rest."""
    if isinstance(error, StudioError):
        return str(error)
    logger.error("unexpected error in a page", exc_info=error)
    return INTERNAL
