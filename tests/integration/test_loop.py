"""The whole loop, once, for real: votes over HTTP → round → gate → swap under load → a changed model."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dpo_studio import starter
from dpo_studio.domain.preference import Choice
from dpo_studio.rounds import registry
from dpo_studio.tastes import get_taste, measure
from tests.integration.studio_process import StudioProcess, studio

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]
PAIRS = 60
TASTE = "formal"


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioProcess]:
    storage = tmp_path_factory.mktemp("loop") / "storage"
    with studio(
        storage, "--undo-window", "0", "--min-new-pairs", str(PAIRS), "--interval-minutes", "1"
    ) as process:
        yield process


def label(process: StudioProcess, decided: int) -> None:
    """A scripted labeler over HTTP with a taste, until that many votes were no ties."""
    taste, random_source = get_taste(TASTE), random.Random(0)
    while decided > 0:
        comparison = process.post("/api/comparisons").json()
        choice = taste.prefers(comparison["a"], comparison["b"], 0.0, random_source)
        answer = process.post(f"/api/comparisons/{comparison['id']}/vote", {"choice": choice.value})
        assert answer.status_code == 200, answer.text
        decided -= choice is not Choice.TIE


def samples(process: StudioProcess, version: str, count: int = 24) -> list[str]:
    """Answers of one version to the first seed prompts, one seed each."""

    def one(number: int) -> str:
        body = {
            "prompt": starter.seed_prompts()[number],
            "version": version,
            "seed": number,
            "max_tokens": 120,
        }
        answer = process.post("/api/generate", body)
        assert answer.status_code == 200, answer.text
        assert version in ("live", answer.json()["version"])
        return str(answer.json()["text"])

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(count)))


def stream(process: StudioProcess, seed: int) -> tuple[str, str]:
    """(version, text) of one streamed OpenAI chat completion from the live version."""
    body = {
        "model": "live",
        "stream": True,
        "seed": seed,
        "temperature": 0,
        "max_tokens": 150,
        "messages": [{"role": "user", "content": starter.seed_prompts()[seed % 20]}],
    }
    text, versions = "", set()
    with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunk = json.loads(line[6:])
                versions.add(chunk["model"])
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
    assert len(versions) == 1
    return versions.pop(), text


class Streams:
    """Streams of the live version that run one after the other in threads until told to stop."""

    def __init__(self, process: StudioProcess, num_threads: int = 4) -> None:
        self.results: list[tuple[int, str, str]] = []
        self.errors: list[Exception] = []
        self._process = process
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(i,)) for i in range(num_threads)]

    def __enter__(self) -> "Streams":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=90)

    def _work(self, number: int) -> None:
        seed = number
        while not self._stopping.is_set():
            try:
                version, text = stream(self._process, seed)
            except Exception as error:
                self.errors.append(error)
                return
            self.results.append((seed, version, text))
            seed += 4


def test_votes_train_a_version_that_goes_live_under_load_and_behaves_as_voted(loop: StudioProcess) -> None:
    label(loop, PAIRS)
    status = loop.get("/api/status").json()
    assert status["live"] == "base"
    with Streams(loop) as streams:
        # The clock starts the round by itself: enough new pairs, and no round yet.
        loop.wait_until(lambda: loop.get("/api/rounds").json()["rounds"], "the scheduled round to start", 60)
        number = loop.get("/api/rounds").json()["rounds"][0]["round"]
        final = ("promoted", "rejected", "failed", "cancelled", "interrupted")
        loop.wait_until(
            lambda: loop.get(f"/api/rounds/{number}").json()["status"] in final, "the round to end", 240
        )
        seen = len(streams.results)
        loop.wait_until(lambda: len(streams.results) >= seen + 8, "streams on the new version", 60)
    entry = loop.get(f"/api/rounds/{number}").json()
    assert entry["status"] == "promoted", entry["reason"]
    assert loop.get("/api/status").json()["live"] == entry["version"]
    assert streams.errors == []
    check_streams(loop, streams, entry["version"])
    before = samples(loop, "base")
    after = samples(loop, entry["version"])
    assert measure(TASTE, after) >= measure(TASTE, before) + 0.2
    registry.verify(loop.storage / "versions" / entry["version"])


def check_streams(loop: StudioProcess, streams: Streams, version: str) -> None:
    """Every stream came from one version, whole: the same greedy text as that version gives now, alone."""
    by_version = {name for _, name, _ in streams.results}
    assert by_version == {"base", version}
    for seed, name, text in {(s % 20, n): (s, n, t) for s, n, t in streams.results}.values():
        body = {
            "prompt": starter.seed_prompts()[seed % 20],
            "version": name,
            "temperature": 0,
            "max_tokens": 150,
        }
        assert loop.post("/api/generate", body).json()["text"] == text


def test_compare_answers_from_both_versions_after_the_swap(loop: StudioProcess) -> None:
    versions = [entry["name"] for entry in loop.get("/api/versions").json()["versions"]]
    assert versions[0] == "base" and len(versions) >= 2
    texts = {version: samples(loop, version, 3) for version in versions[:2]}
    assert texts[versions[0]] != texts[versions[1]]


def test_rolling_back_to_base_and_restarting_keeps_base(loop: StudioProcess) -> None:
    live = loop.get("/api/status").json()["live"]
    assert loop.post("/api/versions/base/promote").status_code == 200
    assert loop.get("/api/status").json()["live"] == "base"
    assert loop.post(f"/api/versions/{live}/promote").status_code == 200
    loop.stop()
    loop.start()
    assert loop.get("/api/status").json()["live"] == live
    comparison = loop.post("/api/comparisons").json()
    vote = loop.post(f"/api/comparisons/{comparison['id']}/vote", {"choice": Choice.A.value}).json()
    assert set(vote["versions"].values()) == {live}


def test_exported_pairs_are_what_trl_reads(loop: StudioProcess) -> None:
    rows = [json.loads(line) for line in loop.get("/api/pairs?format=trl").text.splitlines()]
    assert len(rows) >= PAIRS
    for row in rows:
        assert [message["role"] for message in row["chosen"]] == ["assistant"]
        assert row["prompt"][-1]["role"] == "user"
        assert row["chosen"] != row["rejected"]
