"""Routes of rounds: start, watch, cancel, and how the next ones train."""

from typing import Annotated

from fastapi import Query

from dpo_studio.services.studio import Studio
from dpo_studio.web.answers import Json, round_json, steps_json, training_json
from dpo_studio.web.requests import EmptyBody, RoundNumber, TrainingBody
from dpo_studio.web.visitors import Visitor


class RoundRoutes:
    """One DPO round per number."""

    def __init__(self, studio: Studio) -> None:
        self._rounds = studio.rounds

    def start(self, visitor: Visitor, body: EmptyBody | None = None) -> Json:
        """Train now, on every vote given so far; 202, as training goes on."""
        del body
        return {"round": self._rounds.start(trigger=visitor).number}

    def list(self) -> Json:
        """Newest first."""
        return {"rounds": [round_json(view) for view in self._rounds.list()]}

    def get(self, number: RoundNumber) -> Json:
        """One round."""
        return round_json(self._rounds.get(number))

    def steps(self, number: RoundNumber, since: Annotated[int, Query(ge=0, le=2**31)] = 0) -> Json:
        """Steps after `since`, for the live curve: ask again with the last step's number."""
        return steps_json(self._rounds.get(number), self._rounds.steps(number, since=since))

    def cancel(self, number: RoundNumber, body: EmptyBody | None = None) -> Json:
        """Stop an active round within one step."""
        del body
        return round_json(self._rounds.cancel(number))

    def training(self) -> Json:
        """How the next rounds train."""
        return training_json(self._rounds.training.view())

    def set_training(self, visitor: Visitor, body: TrainingBody) -> Json:
        """Change it, for rounds that start from now on; `{}` goes back to the preset."""
        return training_json(self._rounds.training.choose(body.changes(), actor=visitor))
