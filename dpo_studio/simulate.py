"""A scripted labeler against a running studio, through its HTTP API only.

It asks for comparisons, judges them by a taste and votes; it can then train a round and measure how much
more the live version pleases that taste than base does. It may be stopped and started at any moment: the
studio hands out an open comparison again, and a vote sent twice is one vote. Busy, restarting and briefly
unreachable studios are waited for; any other refusal ends the run with the studio's own sentence.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from dpo_studio.domain.preference import Choice
from dpo_studio.errors import StudioError
from dpo_studio.tastes import Taste, get_taste, measure

Report = Callable[[str], None]
Sleep = Callable[[float], None]

REQUEST_TIMEOUT_S = 300.0
"""A comparison is written while the request waits; a large model on a busy machine takes minutes."""
PATIENCE_S = 300.0
"""Total time to wait for one answer through restarts and full queues."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0
ROUND_POLL_S = 1.0
REPORT_EVERY = 10
SAMPLES_PER_PROMPT = 4
_RETRIED = (429, 502, 503, 504)
_ACTIVE = ("queued", "running", "gating")

# Everyday prompts in nobody's queue, so that what is measured was not voted on.
PROBE_PROMPTS = (
    "What could I cook with rice tonight?",
    "I feel tired today.",
    "How do I get my cat to like me?",
    "Any ideas for a rainy Sunday?",
    "What should I give my sister for her birthday?",
    "Help me pack for a weekend in the mountains.",
    "How can I sleep better?",
    "My plant has yellow leaves. What now?",
    "I have an exam tomorrow and I am nervous.",
    "Tell me something nice.",
)


class SimulationError(StudioError):
    """The studio at the URL cannot be used for a simulation."""

    code = "simulation"


@dataclass(frozen=True, slots=True)
class SimulationPlan:
    """What the simulated labeler does."""

    taste: str
    num_votes: int
    noise: float = 0.0
    """Share of decisions flipped by mistake."""
    seed: int = 0
    is_training: bool = False
    """Start a round after the votes and wait for it."""
    is_measuring: bool = True
    """Compare base and live at the end."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What came of it."""

    choices: Mapping[str, int]
    """Votes given in this run, by choice."""
    live: str
    """Version that was live at the end."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Version → share of its answers that show the taste; empty when not measured."""
    round: Mapping[str, Any] | None = None
    """The trained round's record."""


def simulate(
    plan: SimulationPlan, client: httpx.Client, *, report: Report, sleep: Sleep = time.sleep
) -> SimulationResult:
    """Vote, maybe train, maybe measure. `client` has the studio's address as base_url.

    Raises SimulationError when the studio cannot be reached or refuses, BadInput for an unknown taste.
    """
    taste = get_taste(plan.taste)
    studio = StudioClient(client, report=report, sleep=sleep)
    studio.wait_until_ready()
    choices = _vote(plan, taste, studio, report)
    record = _train(studio, report) if plan.is_training else None
    live = str(studio.get("/api/status")["live"])
    versions = dict.fromkeys(("base", live)) if plan.is_measuring else {}
    rates = {version: measure(plan.taste, studio.sample(version, plan.seed)) for version in versions}
    for version, rate in rates.items():
        report(f"{taste.name}: {rate:.0%} of the answers of {version}")
    return SimulationResult(choices, live, rates, record)


def open_client(url: str) -> httpx.Client:
    """A client for the studio at `url`. Raises SimulationError when that is no address."""
    try:
        # The environment's proxies are for other machines.
        return httpx.Client(base_url=url, trust_env=False)
    except (httpx.InvalidURL, ValueError) as error:
        raise SimulationError(
            f"url: expected an address such as http://127.0.0.1:7860, found {url!r}"
        ) from error


class StudioClient:
    """The studio's API with patience: JSON in and out, retries, and sentences for refusals."""

    def __init__(self, client: httpx.Client, *, report: Report, sleep: Sleep) -> None:
        self._client = client
        self._report = report
        self._sleep = sleep

    def wait_until_ready(self) -> None:
        """Return when the model answers. Raises SimulationError at once when no studio is there."""
        try:
            alive = self._client.get("/healthz", timeout=10)
        except httpx.HTTPError as error:
            raise SimulationError(
                f"url: expected a running studio at {self._client.base_url}, found none "
                f"({_cause(error)}); start one with `make run` and use the address it prints"
            ) from error
        if alive.status_code != 200 or _body(alive).get("status") != "ok":
            raise SimulationError(f"url: expected a studio at {self._client.base_url}, found another server")
        self.get("/readyz")

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object."""
        return self._send("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST a JSON object. Every POST of this module may be repeated without harm but a round's start."""
        return self._send("POST", path, body)

    def sample(self, version: str, seed: int) -> list[str]:
        """Answers of one version to the probe prompts."""
        texts = []
        for prompt in PROBE_PROMPTS:
            messages = [{"role": "user", "content": prompt}]
            body = {"model": version, "messages": messages, "n": SAMPLES_PER_PROMPT, "seed": seed}
            answer = self.post("/v1/chat/completions", body)
            texts += [choice["message"]["content"] for choice in answer["choices"]]
        return texts

    def wait_for_round(self, number: int) -> dict[str, Any]:
        """The round's record once nothing works on it any more."""
        last = ""
        while (record := self.get(f"/api/rounds/{number}"))["status"] in _ACTIVE:
            line = _progress_line(record)
            if line != last:
                self._report(line)
                last = line
            self._sleep(ROUND_POLL_S)
        return record

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        problem = ""
        for wait_s in _waits():
            try:
                response = self._client.request(method, path, json=body, timeout=REQUEST_TIMEOUT_S)
            except httpx.HTTPError as error:
                problem = _cause(error)
            else:
                if response.is_success:
                    return _body(response)
                problem = _sentence(response)
                if response.status_code not in _RETRIED:
                    raise SimulationError(problem)
            if wait_s >= LONGEST_WAIT_S:
                self._report(f"waiting for the studio: {problem}")
            self._sleep(wait_s)
        raise SimulationError(f"The studio did not answer {path} within {PATIENCE_S:.0f} s: {problem}")


def _vote(plan: SimulationPlan, taste: Taste, studio: StudioClient, report: Report) -> dict[str, int]:
    rng = Random(plan.seed)
    choices: Counter[Choice] = Counter()
    for number in range(1, plan.num_votes + 1):
        comparison = studio.post("/api/comparisons", {})
        choice = taste.prefers(comparison["a"], comparison["b"], plan.noise, rng)
        studio.post(f"/api/comparisons/{comparison['id']}/vote", {"choice": choice.value})
        choices[choice] += 1
        if number % REPORT_EVERY == 0 or number == plan.num_votes:
            decided = choices[Choice.A] + choices[Choice.B]
            report(f"{number}/{plan.num_votes} votes, {decided} decided, {choices[Choice.TIE]} ties")
    return {choice.value: count for choice, count in sorted(choices.items())}


def _train(studio: StudioClient, report: Report) -> dict[str, Any]:
    active = studio.get("/api/status")["round"]
    if active is not None and active["status"] in _ACTIVE:
        report(f"round {active['round']} is running already; waiting for it first")
        studio.wait_for_round(active["round"])
    number = int(studio.post("/api/rounds", {})["round"])
    record = studio.wait_for_round(number)
    outcome = ": ".join(part for part in (record["status"], record["reason"]) if part)
    report(f"round {number}: {outcome}")
    return record


def _waits() -> Iterator[float]:
    """Growing waits that add up to PATIENCE_S."""
    wait_s, total_s = FIRST_WAIT_S, 0.0
    while total_s < PATIENCE_S:
        yield wait_s
        total_s += wait_s
        wait_s = min(wait_s * 1.5, LONGEST_WAIT_S)


def _progress_line(record: Mapping[str, Any]) -> str:
    progress = record.get("progress")
    if not progress:
        return f"round {record['round']}: {record['status']}"
    # One line per tenth of the way: a round of hundreds of steps must not flood a log.
    tenths = 10 * progress["step"] // max(progress["num_steps"], 1)
    return f"round {record['round']}: {progress['phase']} {10 * tenths} %"


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _sentence(response: httpx.Response) -> str:
    error = _body(response).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or f"the studio answered {response.status_code} to {response.request.url.path}")


def _cause(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
