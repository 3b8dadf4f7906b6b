"""DeploymentService: which version is live, and how that changes while everyone keeps talking.

The pointer in the database decides (design §4.4). Promote = verify on disk → load beside → smoke prompts
in the loaded version → compare-and-set the pointer → flip in memory. Responses in flight keep the version
they began with; the engine forgets a version only after its last response has ended.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path

from sqlmodel import Session

from dpo_studio.domain.chat import (
    BASE,
    ChatEngine,
    GenerationRequest,
    Message,
    SampleFinished,
    SamplingParams,
)
from dpo_studio.domain.version import Manifest
from dpo_studio.errors import Conflict, EngineUnavailable, ModelError, NotFound
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds import registry
from dpo_studio.services.views import VersionView
from dpo_studio.store import audit, rounds, versions
from dpo_studio.store.database import Database

logger = logging.getLogger(__name__)
LIVE = "live"
SMOKE_TOKENS = 24
WithinPromotion = Callable[[Session], None]


class DeploymentService:
    """The live pointer and the versions behind it."""

    def __init__(
        self,
        database: Database,
        engine: ChatEngine,
        paths: StoragePaths,
        *,
        smoke_prompts: Sequence[str],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._engine = engine
        self._paths = paths
        self._smoke_prompts = tuple(smoke_prompts)
        self._now = now
        self._promoting = asyncio.Lock()
        self._trained_on: dict[str, Manifest] = {}
        self._on_swap: list[Callable[[str], None]] = []
        with database.read() as session:
            self._live = versions.get_live(session=session)

    def live(self) -> str:
        """Name of the version that answers.

        Where the pointer stands, but for a storage that is served with other base weights than the live
        version was trained on: then base answers, and the pointer waits for its model to come back.
        """
        name = self._live.version
        return BASE if self._belongs_elsewhere(name) else name

    def trouble(self) -> str:
        """Why the pointer's version does not answer; empty when it does."""
        name = self._live.version
        return self._elsewhere_sentence(name) if self._belongs_elsewhere(name) else ""

    def resolve(self, name: str) -> str:
        """A concrete version name. Raises NotFound for names that were never published."""
        if name in (LIVE, ""):
            return self.live()
        if name != BASE and not self._record_exists(name):
            raise NotFound(f"version: expected live, base or a published version, found {name[:40]!r}")
        return name

    def folders_to_serve(self) -> dict[str, Path]:
        """What a freshly started engine must load: the pointer's version, nothing for base.

        Nothing as well when the engine has other base weights: then base answers, as `live` says.
        """
        name = self._live.version
        if self._belongs_elsewhere(name):
            logger.warning("base answers instead of %s: %s", name, self._elsewhere_sentence(name))
            return {}
        return {} if name == BASE else {name: self._paths.version(name)}

    def on_swap(self, callback: Callable[[str], None]) -> None:
        """Call `callback(new live name)` after every flip, in a thread: it may wait for the disk."""
        self._on_swap.append(callback)

    def versions(self) -> list[VersionView]:
        """Base first, then by number."""
        loaded = self._engine.status.loaded
        with self._database.read() as session:
            records = versions.list_versions(session=session)
            accuracies = rounds.heldout_accuracies(session=session)
            pairs = rounds.pair_counts(session=session)
        base = VersionView(BASE, None, None, self.live() == BASE, BASE in loaded, 0, None)
        return [base] + [
            VersionView(
                name=record.name,
                round=record.round,
                created_at=record.created_at,
                is_live=record.name == self.live(),
                is_loaded=record.name in loaded,
                num_pairs=pairs.get(record.round, 0),
                heldout_accuracy=accuracies.get(record.round),
            )
            for record in records
        ]

    async def ensure_loaded(self, name: str) -> str:
        """Resolve `name` and make it available in the engine; returns the concrete name."""
        version = await self._resolved(name)
        if version != BASE and version not in self._engine.status.loaded:
            await self._load(version)
        return version

    async def promote(self, name: str, *, actor: str, within: WithinPromotion | None = None) -> str:
        """Move the live pointer to `name`; returns it. Promoting the live version changes nothing.

        `within` runs in the transaction that moves the pointer. Raises NotFound, ModelError (the folder
        fails its checks or its answers are empty), EngineUnavailable, Conflict (someone else moved the
        pointer meanwhile). On any of these the old version stays live.
        """
        async with self._promoting:
            version = await self._resolved(name)
            before = self._live
            if version == before.version == self.live() and within is None:
                return version
            if version != BASE:
                await self._load(version)
            await self._smoke(version)
            await asyncio.to_thread(self._move_pointer, version, before.serial, actor, within)
        for callback in self._on_swap:
            await asyncio.to_thread(callback, version)
        return version

    async def rollback(self, *, actor: str) -> str:
        """Go back to the newest version promoted before the live one, or to base."""
        current = self.live()
        if current == BASE:
            raise Conflict("Nothing to roll back to: base is live already")
        return await self.promote(await asyncio.to_thread(self._before, current), actor=actor)

    async def _resolved(self, name: str) -> str:
        """`resolve` without the event loop waiting for the disk; live and base need no disk and no thread."""
        if name in (LIVE, "", BASE):
            return self.resolve(name)
        return await asyncio.to_thread(self.resolve, name)

    def _before(self, version: str) -> str:
        with self._database.read() as session:
            return versions.promoted_before(version, session=session) or BASE

    def _record_exists(self, name: str) -> bool:
        with self._database.read() as session:
            return versions.get_version(name, session=session) is not None

    async def _load(self, version: str) -> None:
        folder = self._paths.version(version)
        await asyncio.to_thread(registry.verify, folder)
        if self._belongs_elsewhere(version):
            raise ModelError(self._elsewhere_sentence(version))
        await self._engine.load(version, folder)

    def _belongs_elsewhere(self, version: str) -> bool:
        served = self._engine.status.model_sha256
        if version == BASE or not served:
            return False
        if version not in self._trained_on:
            self._trained_on[version] = registry.read_manifest(self._paths.version(version))
        return self._trained_on[version].model_sha256 != served

    def _elsewhere_sentence(self, version: str) -> str:
        return (
            f"{version} was trained on other base weights ({self._trained_on[version].model}) than those "
            "served now, so it cannot answer; start the studio with its model, or train a new version"
        )

    async def _smoke(self, version: str) -> None:
        """A few greedy tokens from the loaded version: a broken one must fail here, not before people."""
        for number, prompt in enumerate(self._smoke_prompts):
            request = GenerationRequest(
                request_id=f"smoke-{version}-{number}",
                messages=(Message("user", prompt),),
                version=version,
                sampling=SamplingParams(temperature=0.0, max_tokens=SMOKE_TOKENS),
            )
            text = ""
            async with aclosing(self._engine.stream(request)) as events:
                async for event in events:
                    if isinstance(event, SampleFinished):
                        text = event.completion.text
            if not text.strip():
                raise ModelError(f"{version} answered a smoke prompt with nothing; it was not promoted")

    def _move_pointer(
        self, version: str, expected_serial: int, actor: str, within: WithinPromotion | None
    ) -> None:
        with self._database.write() as session:
            state = versions.set_live(
                version, expected_serial=expected_serial, actor=actor, now=self._now(), session=session
            )
            audit.record(
                actor=actor,
                action="promote",
                subject=version,
                details={"from": self._live.version},
                now=self._now(),
                session=session,
            )
            if within is not None:
                within(session)
        self._live = state


async def wait_until_ready(engine: ChatEngine, *, timeout_s: float, poll_s: float = 0.1) -> None:
    """Return when the engine answers. Raises EngineUnavailable with its own sentence when it cannot."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while engine.status.state != "ready":
        if engine.status.state in ("failed", "stopped"):
            raise EngineUnavailable(engine.status.detail or "The model could not be started")
        if asyncio.get_running_loop().time() > deadline:
            raise EngineUnavailable(f"The model was not ready within {timeout_s:.0f} s; see engine.log")
        await asyncio.sleep(poll_s)
