"""The simulated labeler: votes by its taste, waits out restarts, tells refusals in one sentence."""

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from dpo_studio.errors import BadInput
from dpo_studio.simulate import PATIENCE_S, PROBE_PROMPTS, SimulationError, SimulationPlan, simulate

Handler = Callable[[httpx.Request], httpx.Response]


class ScriptedStudio:
    """Speaks the API from memory; `base` writes 30 words, `v1` three. A is the shorter in odd comparisons."""

    def __init__(self) -> None:
        self.votes: dict[str, str] = {}
        self.open_id: str | None = None
        self.num_comparisons = 0
        self.live = "base"
        self.rounds: list[list[str]] = []
        self.requests: list[str] = []
        self.failures: list[int | Exception] = []
        """Answers of this kind come first, one a request."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.requests.append(f"{request.method} {path}")
        if path != "/healthz" and self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return httpx.Response(
                failure, json={"error": {"code": "x", "message": "The model is restarting"}}
            )
        body = json.loads(request.content) if request.content else {}
        return httpx.Response(200, json=self._answer(path, body))

    def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        match path.strip("/").split("/"):
            case ["healthz"]:
                return {"status": "ok"}
            case ["api", "status"]:
                return {"live": self.live, "round": None}
            case ["api", "comparisons"]:
                return self._comparison()
            case ["api", "comparisons", identifier, "vote"]:
                self.votes[identifier] = body["choice"]
                self.open_id = None
                return {"vote_id": f"v-{identifier}", "versions": {"a": "base", "b": "base"}}
            case ["api", "rounds"]:
                self.rounds.append(["queued", "running", "gating", "promoted"])
                return {"round": len(self.rounds)}
            case ["api", "rounds", number]:
                left = self.rounds[int(number) - 1]
                status = left.pop(0)
                self.live = "v1" if status == "promoted" else self.live
                progress = {"phase": "training", "step": 5, "num_steps": 10} if status == "running" else None
                return {"round": int(number), "status": status, "reason": "good", "progress": progress}
            case ["v1", "chat", "completions"]:
                text = "word " * (30 if body["model"] == "base" else 3)
                return {"choices": [{"message": {"content": text}}] * body["n"]}
        return {}

    def _comparison(self) -> dict[str, Any]:
        if self.open_id is None:
            self.num_comparisons += 1
            self.open_id = f"c{self.num_comparisons}"
        number = int(self.open_id[1:])
        short, long = "one two", "one two three"
        a, b = (short, long) if number % 2 else (long, short)
        if number % 5 == 0:
            a = b
        return {"id": self.open_id, "messages": [], "a": a, "b": b}


class Run:
    """One simulation against a handler, with its lines and waits."""

    def __init__(self, handler: Handler, plan: SimulationPlan) -> None:
        self.lines: list[str] = []
        self.waits: list[float] = []
        transport = httpx.MockTransport(handler)
        with httpx.Client(transport=transport, base_url="http://studio") as client:
            self.result = simulate(plan, client, report=self.lines.append, sleep=self.waits.append)


def test_votes_follow_the_taste() -> None:
    studio = ScriptedStudio()
    run = Run(studio, SimulationPlan("shorter", 10, is_measuring=False))
    expected = {"c1": "a", "c2": "b", "c3": "a", "c4": "b", "c5": "tie"}
    assert {key: studio.votes[key] for key in expected} == expected
    assert run.result.choices == {"a": 4, "b": 4, "tie": 2}
    assert run.lines == ["10/10 votes, 8 decided, 2 ties"]
    assert run.waits == []


def test_the_opposite_taste_votes_the_other_way() -> None:
    studio = ScriptedStudio()
    Run(studio, SimulationPlan("longer", 2, is_measuring=False))
    assert studio.votes == {"c1": "b", "c2": "a"}


def test_noise_flips_votes_reproducibly() -> None:
    votes = []
    for _ in range(2):
        studio = ScriptedStudio()
        Run(studio, SimulationPlan("shorter", 40, noise=0.5, seed=3, is_measuring=False))
        votes.append(studio.votes)
    clean = ScriptedStudio()
    Run(clean, SimulationPlan("shorter", 40, is_measuring=False))
    assert votes[0] == votes[1] != clean.votes


def test_base_and_live_are_measured_on_prompts_outside_the_queue() -> None:
    studio = ScriptedStudio()
    studio.live = "v1"
    run = Run(studio, SimulationPlan("shorter", 0))
    assert run.result.rates == {"base": 0.0, "v1": 1.0}
    assert run.lines == ["shorter: 0% of the answers of base", "shorter: 100% of the answers of v1"]
    assert studio.requests.count("POST /v1/chat/completions") == 2 * len(PROBE_PROMPTS)


def test_base_is_measured_once_when_it_is_live() -> None:
    studio = ScriptedStudio()
    assert set(Run(studio, SimulationPlan("shorter", 0)).result.rates) == {"base"}


def test_training_waits_for_the_round_and_reports_each_phase_once() -> None:
    studio = ScriptedStudio()
    run = Run(studio, SimulationPlan("shorter", 1, is_training=True, is_measuring=False))
    assert run.result.live == "v1"
    assert run.result.round is not None and run.result.round["status"] == "promoted"
    assert run.lines[1:] == [
        "round 1: queued",
        "round 1: training 50 %",
        "round 1: gating",
        "round 1: promoted: good",
    ]


@pytest.mark.parametrize(
    "failure",
    [503, 429, httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("cut")],
)
def test_a_restart_in_the_middle_loses_and_doubles_nothing(failure: int | Exception) -> None:
    studio = ScriptedStudio()

    def flaky(request: httpx.Request) -> httpx.Response:
        if len(studio.requests) in (4, 5, 9, 14):
            studio.failures.append(failure)
        return studio(request)

    run = Run(flaky, SimulationPlan("shorter", 8, is_measuring=False))
    assert sum(run.result.choices.values()) == 8
    assert sorted(studio.votes) == [f"c{number}" for number in range(1, 9)]
    assert len(run.waits) == 4
    assert all(0 < wait < 1 for wait in run.waits)


def test_a_run_started_again_judges_the_comparison_left_open() -> None:
    studio = ScriptedStudio()
    studio._comparison()
    Run(studio, SimulationPlan("shorter", 2, is_measuring=False))
    assert sorted(studio.votes) == ["c1", "c2"]


def test_a_studio_that_stays_busy_is_given_up_with_its_own_sentence() -> None:
    studio = ScriptedStudio()
    studio.failures = [503] * 10_000
    lines: list[str] = []
    waits: list[float] = []
    with httpx.Client(transport=httpx.MockTransport(studio), base_url="http://studio") as client:  # noqa: SIM117
        with pytest.raises(SimulationError, match="within 300 s: The model is restarting"):
            simulate(SimulationPlan("shorter", 1), client, report=lines.append, sleep=waits.append)
    assert PATIENCE_S <= sum(waits) < PATIENCE_S + 6
    assert "waiting for the studio: The model is restarting" in lines


def test_a_refusal_ends_the_run_at_once() -> None:
    studio = ScriptedStudio()

    def empty_queue(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/comparisons":
            return httpx.Response(404, json={"error": {"code": "not_found", "message": "The queue is empty"}})
        return studio(request)

    with pytest.raises(SimulationError, match="The queue is empty"):
        Run(empty_queue, SimulationPlan("shorter", 1))


def test_no_studio_at_the_url_is_said_with_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:  # noqa: SIM117
        with pytest.raises(SimulationError, match=f"expected a running studio at http://127.0.0.1:{port}"):
            simulate(SimulationPlan("shorter", 1), client, report=print, sleep=fail_to_sleep)


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<p>hi</p>"), httpx.Response(404)])
def test_another_server_at_the_url_is_recognised(answer: httpx.Response) -> None:
    with pytest.raises(SimulationError, match="found another server"):
        Run(lambda _: answer, SimulationPlan("shorter", 1))


def test_an_unknown_taste_is_refused_before_anything_is_sent() -> None:
    studio = ScriptedStudio()
    with pytest.raises(BadInput, match="expected one of"):
        Run(studio, SimulationPlan("nobody", 1))
    assert studio.requests == []


def fail_to_sleep(seconds: float) -> None:
    """For runs that must not wait."""
    raise AssertionError(f"waited {seconds} s")
