"""The engine: requests in, events out, one step at a time, on the one thread that owns the model.

A step is: one chunk of one prompt, then one token for every running row. Requests join and leave between
steps; versions are swapped between steps. Always holds: each sample of an accepted request ends exactly once
(Finished, or RequestFailed for all of its request); a failed step ends the requests of that step and nothing
else. Not thread-safe: the owner calls everything.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dpo_studio.domain.chat import Completion, FinishReason, GenerationRequest, Message
from dpo_studio.errors import BadInput, EngineUnavailable, ModelError, NotFound, StudioError
from dpo_studio.modeling.adapter_files import LoraPair
from dpo_studio.serving.runner import Runner
from dpo_studio.serving.sampling import RowSampling, sample_tokens
from dpo_studio.serving.scheduler import Running, Scheduler
from dpo_studio.serving.sequence import Group, Sample, sample_stream
from dpo_studio.serving.text_stream import TextStream
from dpo_studio.serving.versions import VersionTable
from dpo_studio.serving.wire import CallFailed, Delta, Done, Event, Finished, RequestFailed

logger = logging.getLogger(__name__)

NOT_FINITE = "computes numbers that are not finite and cannot answer; choose another version."
STEP_FAILED = "The model failed while it was answering; please ask again."


class Format(Protocol):
    """What the engine needs of a ChatFormat."""

    @property
    def eos_ids(self) -> frozenset[int]: ...
    def prompt_ids(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def is_hidden(self, token: int) -> bool: ...


class Slots(Protocol):
    """What the engine needs of AdapterSlots."""

    num_slots: int

    def check(self, pairs: Mapping[str, LoraPair]) -> None: ...
    def write(self, slot: int, pairs: Mapping[str, LoraPair]) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How much the engine takes on."""

    max_waiting: int = 64
    reserved_rows: int = 4
    prefill_chunk: int = 128


@dataclass(frozen=True, slots=True)
class _PendingLoad:
    call: int
    version: str
    pairs: Mapping[str, LoraPair]


class Engine:
    """Continuous batching over a runner."""

    def __init__(
        self,
        runner: Runner,
        slots: Slots,
        chat: Format,
        *,
        limits: EngineLimits,
        emit: Callable[[Event], None],
        draw_seed: Callable[[], int],
    ) -> None:
        self._runner = runner
        self._slots = slots
        self._chat = chat
        self._limits = limits
        self._emit = emit
        self._draw_seed = draw_seed
        self._versions = VersionTable(slots.num_slots)
        self._loads: list[_PendingLoad] = []
        self.num_failures = 0
        """Steps that failed since the last one that went well."""
        self._scheduler = Scheduler(runner.num_rows, limits.max_waiting, limits.reserved_rows)

    @property
    def is_idle(self) -> bool:
        return self._scheduler.is_idle

    @property
    def loaded(self) -> tuple[str, ...]:
        """Versions that new requests may use."""
        return self._versions.loaded

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; what is wrong with it comes back as RequestFailed."""
        try:
            self._accept(request)
        except StudioError as error:
            self._emit(RequestFailed(request.request_id, error.code, str(error)))
        except Exception:
            # Templates and tokenizers are foreign code fed with foreign text.
            logger.exception("a prompt could not be encoded")
            text = "messages: expected text that this model can read, found some that it cannot"
            self._emit(RequestFailed(request.request_id, BadInput.code, text))

    def cancel(self, request_id: str) -> None:
        """End what is left of a request. Unknown ids are ignored: it may just have ended."""
        group = self._scheduler.find(request_id)
        if group is not None:
            for sample in group.unfinished:
                self._finish(group, sample, "cancelled")
            self._commit_loads()

    def load(self, call: int, version: str, pairs: Mapping[str, LoraPair]) -> None:
        """Put a checked adapter into a slot, now or as soon as one is idle; then answer `call`."""
        self._loads.append(_PendingLoad(call, version, pairs))
        self._commit_loads()

    def has(self, version: str) -> bool:
        """Whether a version is here; one that was about to be unloaded then stays."""
        return self._versions.revive(version)

    def unload(self, call: int, version: str) -> None:
        """Forget a version once its last request has ended."""
        for pending in [pending for pending in self._loads if pending.version == version]:
            self._loads.remove(pending)
            self._emit(CallFailed(pending.call, NotFound.code, f"version: {version} was unloaded again"))
        self._versions.retire(version)
        self._emit(Done(call))
        self._commit_loads()

    def step(self) -> None:
        """Do one step. Never raises for a failure of the model."""
        group = self._scheduler.next_prefill()
        if group is not None:
            self._guarded(lambda: self._prefill(group), [group])
        if self._scheduler.rows:
            self._guarded(self._decode, self._scheduler.groups())
        if self._loads:
            self._commit_loads()

    def _accept(self, request: GenerationRequest) -> None:
        if self._scheduler.find(request.request_id) is not None:
            raise BadInput(f"request_id: expected a new one, found {request.request_id} running")
        prompt_ids = self._chat.prompt_ids(request.messages)
        room = self._runner.max_length - len(prompt_ids)
        if room < 1:
            raise BadInput(
                f"messages: expected fewer than {self._runner.max_length} tokens (this model's limit), "
                f"found {len(prompt_ids)}; shorten the conversation"
            )
        slot = self._versions.acquire(request.version)
        seed = self._draw_seed() if request.sampling.seed is None else request.sampling.seed
        samples = [
            Sample(i, TextStream(self._chat.decode, request.sampling.stop), sample_stream(seed, i))
            for i in range(request.n)
        ]
        limit = min(request.sampling.max_tokens, room)
        try:
            self._scheduler.submit(Group(request, prompt_ids, seed, slot, limit, samples))
        except StudioError:
            self._versions.release(request.version)
            raise

    def _prefill(self, group: Group) -> None:
        start = group.num_prefilled
        chunk = group.prompt_ids[start : start + self._limits.prefill_chunk]
        logits = self._runner.prefill(chunk, start, group.slot)
        group.num_prefilled += len(chunk)
        if group.is_prefilled:
            rows = self._scheduler.place(group)
            self._runner.place(rows, len(group.prompt_ids))
            self._sample(logits.expand(len(rows), -1), [Running(group, sample) for sample in group.samples])

    def _decode(self) -> None:
        rows = list(self._scheduler.rows)
        logits = self._runner.decode(
            [row.sample.token_ids[-1] for row in rows],
            [_position(row) for row in rows],
            [row.group.slot for row in rows],
        )
        self._sample(logits, rows)

    def _sample(self, logits: torch.Tensor, rows: list[Running]) -> None:
        tokens = sample_tokens(logits, [_sampling(row) for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            if row.sample.finish_reason is not None:
                continue  # its request has just failed by another row
            if token is None:
                self._fail([row.group], f"{row.group.request.version} {NOT_FINITE}")
            else:
                self._take(row.group, row.sample, token)

    def _take(self, group: Group, sample: Sample, token: int) -> None:
        """Append a sampled token and end the sample where that ends it."""
        sample.token_ids.append(token)
        if token in self._chat.eos_ids:
            self._finish(group, sample, "stop")
            return
        if not self._chat.is_hidden(token):
            self._send(group, sample, sample.text.push(token))
        if sample.text.is_stopped:
            self._finish(group, sample, "stop")
        elif len(sample.token_ids) >= group.max_tokens:
            self._finish(group, sample, "length")

    def _finish(self, group: Group, sample: Sample, reason: FinishReason) -> None:
        self._send(group, sample, sample.text.finish())
        completion = Completion(
            text=sample.text.text,
            token_ids=tuple(sample.token_ids),
            version=group.request.version,
            seed=group.seed,
            finish_reason=reason,
            num_prompt_tokens=len(group.prompt_ids),
        )
        self._leave(group, sample, reason)
        self._emit(Finished(group.request.request_id, sample.index, completion))

    def _send(self, group: Group, sample: Sample, text: str) -> None:
        if text:
            self._emit(Delta(group.request.request_id, sample.index, text))

    def _leave(self, group: Group, sample: Sample, reason: FinishReason) -> None:
        """Free the row; with the last sample also the request's hold on its version."""
        sample.finish_reason = reason
        if sample.row >= 0:
            moved = self._scheduler.remove(sample)
            if moved is not None:
                source, target = moved
                self._runner.move(source, target, _position(self._scheduler.rows[target]) + 1)
        if not group.unfinished:
            self._scheduler.forget(group)
            self._versions.release(group.request.version)

    def _guarded(self, action: Callable[[], None], groups: list[Group]) -> None:
        try:
            action()
            self.num_failures = 0
        except torch.OutOfMemoryError:
            logger.exception("out of memory with %d requests", len(groups))
            # People wait for the live ones; the others are made again by themselves.
            background = [group for group in groups if not group.is_live]
            self._fail(background or groups, "The model ran out of memory; please ask again, or for less.")
        except Exception:
            # The border between the model's code and ours: whatever it raised must not stop the others.
            self.num_failures += 1
            logger.exception("a step failed with %d requests", len(groups))
            self._fail(groups, STEP_FAILED)

    def _fail(self, groups: list[Group], message: str) -> None:
        for group in groups:
            unfinished = group.unfinished
            for sample in unfinished:
                self._leave(group, sample, "cancelled")
            if unfinished:
                self._emit(RequestFailed(group.request.request_id, EngineUnavailable.code, message))

    def _commit_loads(self) -> None:
        waiting: list[_PendingLoad] = []
        for pending in self._loads:
            if not self._commit(pending):
                waiting.append(pending)
        self._loads = waiting

    def _commit(self, pending: _PendingLoad) -> bool:
        """Whether the load is settled, well or badly."""
        if self._versions.revive(pending.version):
            self._emit(Done(pending.call))
            return True
        slot = self._versions.place(pending.version)
        if slot is None:
            return False
        try:
            self._slots.write(slot, pending.pairs)
            self._emit(Done(pending.call))
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self._versions.retire(pending.version)
            logger.exception("loading %s failed", pending.version)
            self._emit(
                CallFailed(pending.call, ModelError.code, f"adapter: no room for {pending.version} ({error})")
            )
        return True


def _position(row: Running) -> int:
    """Where the row's last sampled token goes in the cache."""
    return len(row.group.prompt_ids) + len(row.sample.token_ids) - 1


def _sampling(row: Running) -> RowSampling:
    params = row.group.request.sampling
    return RowSampling(params.temperature, params.top_p, params.top_k, row.sample.uniform.random)
