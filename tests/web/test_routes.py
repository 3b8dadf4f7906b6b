"""REST routes: the contract's shapes, statuses and sentences."""

import logging
from typing import Any

import httpx
import pytest

from dpo_studio.domain.chat import EngineStatus
from dpo_studio.errors import StorageError
from tests.web.fakes import FakeStudio


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, after checking that the body holds nothing else."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


async def test_healthz_answers_while_everything_else_is_broken(
    client: httpx.AsyncClient, fake: FakeStudio
) -> None:
    fake.rounds.crash = StorageError("The disk is full; nothing was saved")
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert error_of(answer) == {"code": "not_ready", "message": "The disk is full; nothing was saved"}


async def test_readyz_turns_200_when_the_model_answers(client: httpx.AsyncClient, fake: FakeStudio) -> None:
    assert (await client.get("/readyz")).status_code == 200
    fake.rounds.engine = EngineStatus(state="starting", detail="Loading the starter, 40 %")
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert error_of(answer)["message"] == "Loading the starter, 40 %"
    assert answer.headers["Retry-After"] == "1"


async def test_readyz_is_503_when_the_database_cannot_be_written(
    client: httpx.AsyncClient, fake: FakeStudio
) -> None:
    fake.rounds.trouble = "The disk is full"
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "The disk is full")


async def test_status_has_the_contracts_keys(client: httpx.AsyncClient) -> None:
    status = (await client.get("/api/status")).json()
    assert status["live"] == "v1"
    assert status["base_model"] == "starter"
    assert status["new_pairs"] == 12
    assert status["round"] is None
    assert status["next_run_at"] == "2026-01-02T03:04:05+00:00"
    assert status["engine"]["state"] == "ready"


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({}, [{"role": "user", "content": "What should I pack?"}]),
        (None, [{"role": "user", "content": "What should I pack?"}]),
        ({"prompt": "Hello"}, [{"role": "user", "content": "Hello"}]),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        ),
    ],
)
async def test_a_comparison_is_complete_and_blind(
    client: httpx.AsyncClient, body: object, messages: object
) -> None:
    answer = await client.post("/api/comparisons", json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "c1",
        "messages": messages,
        "a": "Maybe bring some tea and a coat, number 1?",
        "b": "Tea 1.",
    }


async def test_a_vote_answers_its_id_and_the_versions(client: httpx.AsyncClient) -> None:
    await client.post("/api/comparisons", json={})
    vote = {"choice": "a", "strength": 2, "reasons": ["clear"], "note": "n", "edited": "e"}
    first = await client.post("/api/comparisons/c1/vote", json=vote)
    assert first.status_code == 200
    assert first.json()["versions"] == {"a": "base", "b": "base"}
    assert first.json()["is_new"]
    second = await client.post("/api/comparisons/c1/vote", json=vote)
    assert second.json()["vote_id"] == first.json()["vote_id"]
    assert not second.json()["is_new"]


async def test_a_vote_can_be_undone_once(client: httpx.AsyncClient) -> None:
    await client.post("/api/comparisons", json={})
    await client.post("/api/comparisons/c1/vote", json={"choice": "tie"})
    undone = await client.delete("/api/votes/vote-c1")
    assert undone.json()["id"] == "c1"
    again = await client.delete("/api/votes/vote-c1")
    assert again.status_code == 404
    assert error_of(again)["code"] == "not_found"


async def test_a_foreign_comparison_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/comparisons/c9/vote", json={"choice": "a"})
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "not_found"


async def test_versions_name_the_live_one_and_hold_no_nan(client: httpx.AsyncClient) -> None:
    body = (await client.get("/api/versions")).json()
    assert body["live"] == "v1"
    assert [(version["name"], version["live"]) for version in body["versions"]] == [
        ("base", False),
        ("v1", True),
        ("v2", False),
    ]
    assert body["versions"][2]["heldout_accuracy"] is None


async def test_promote_moves_live_and_base_may_be_promoted(
    client: httpx.AsyncClient, fake: FakeStudio
) -> None:
    assert (await client.post("/api/versions/base/promote")).json() == {"live": "base"}
    assert fake.deployment.live() == "base"
    assert fake.deployment.actors == ["local"]
    assert (await client.post("/api/versions/v9/promote", json={})).status_code == 404
    assert fake.deployment.live() == "base"


async def test_generate_names_the_concrete_version(client: httpx.AsyncClient, fake: FakeStudio) -> None:
    answer = await client.post(
        "/api/generate", json={"prompt": "Hi", "seed": 3, "temperature": 0, "max_tokens": 9}
    )
    assert answer.json() == {
        "text": "v1 says: Hi",
        "version": "v1",
        "tokens": 3,
        "finish_reason": "stop",
        "seed": 7,
    }
    _, sampling, _ = fake.generation.requests[0]
    assert (sampling.seed, sampling.temperature, sampling.max_tokens) == (3, 0.0, 9)


async def test_generate_uses_the_studios_sampling_when_none_is_given(
    client: httpx.AsyncClient, fake: FakeStudio
) -> None:
    await client.post("/api/generate", json={"prompt": "Hi", "version": "base"})
    _, sampling, _ = fake.generation.requests[0]
    assert (sampling.temperature, sampling.max_tokens) == (
        fake.settings.temperature,
        fake.settings.max_tokens,
    )


async def test_a_round_starts_once_and_can_be_cancelled_once(client: httpx.AsyncClient) -> None:
    started = await client.post("/api/rounds")
    assert (started.status_code, started.json()) == (202, {"round": 2})
    second = await client.post("/api/rounds", json={})
    assert second.status_code == 409
    assert error_of(second)["code"] == "conflict"
    assert (await client.get("/api/status")).json()["round"]["round"] == 2
    assert (await client.post("/api/rounds/2/cancel")).json()["status"] == "cancelled"
    assert (await client.post("/api/rounds/2/cancel")).status_code == 409


async def test_rounds_are_listed_newest_first_without_nan(client: httpx.AsyncClient) -> None:
    await client.post("/api/rounds")
    rounds = (await client.get("/api/rounds")).json()["rounds"]
    assert [view["round"] for view in rounds] == [2, 1]
    assert [view["cancelling"] for view in rounds] == [False, False]
    assert rounds[1]["metrics"] == {"heldout/accuracy": 0.8, "loss": None}
    assert rounds[1]["verdict"] == {"passed": True, "reasons": ["held-out accuracy 0.80"]}
    assert rounds[0]["training"] is None
    assert rounds[1]["training"] == {
        "layout": "Trained in the packed layout.",
        "notes": ["It ended early."],
        "num_truncated": 1,
        "num_dropped": 2,
        "num_reference_computed": 3,
        "num_reference_known": 4,
        "train_seconds": 5.5,
    }
    assert (await client.get("/api/rounds/1")).json() == rounds[1]
    assert (await client.get("/api/rounds/7")).status_code == 404


async def test_steps_come_after_since(client: httpx.AsyncClient) -> None:
    body = (await client.get("/api/rounds/1/steps", params={"since": 1})).json()
    assert body["status"] == "promoted"
    assert [step["step"] for step in body["steps"]] == [2, 3]
    assert body["steps"][0]["metrics"] == {"loss": 0.5, "grad_norm": None}
    assert (await client.get("/api/rounds/7/steps")).status_code == 404


async def test_import_takes_jsonl_lines_and_is_all_or_nothing(
    client: httpx.AsyncClient, fake: FakeStudio
) -> None:
    body = '\ufeff{"prompt": "line\u2028separator"}\r\n{"prompt": "b"}\n'.encode()
    answer = await client.post("/api/prompts", content=body)
    assert answer.json() == {"imported": 2, "duplicates": 0, "unusable": 0}
    assert fake.data.prompts[0] == '{"prompt": "line\u2028separator"}\r'
    refused = await client.post("/api/pairs", content=b"good\nbad\n")
    assert refused.status_code == 422
    assert "line 2" in error_of(refused)["message"]
    assert fake.data.pairs == []


async def test_import_names_the_line_that_is_not_utf8(client: httpx.AsyncClient, fake: FakeStudio) -> None:
    answer = await client.post("/api/prompts", content=b"fine\n\xff\xfe\n")
    assert answer.status_code == 422
    assert "line 2: expected UTF-8" in error_of(answer)["message"]
    assert fake.data.prompts == []


@pytest.mark.parametrize(
    ("format", "media_type", "ending"),
    [
        ("trl", "application/jsonl", "jsonl"),
        ("openai", "application/jsonl", "jsonl"),
        ("csv", "text/csv", "csv"),
        ("parquet", "application/vnd.apache.parquet", "parquet"),
    ],
)
async def test_export_streams_a_named_file(
    client: httpx.AsyncClient, format: str, media_type: str, ending: str
) -> None:
    answer = await client.get("/api/pairs", params={"format": format})
    assert answer.content == f"{format} 1\n{format} 2\n".encode()
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["content-disposition"].endswith(f'.{ending}"')


async def test_an_export_that_fails_at_once_is_an_error(client: httpx.AsyncClient, fake: FakeStudio) -> None:
    fake.data.fails_at_once = True
    answer = await client.get("/api/pairs", params={"format": "parquet"})
    assert answer.status_code == 422
    assert "pyarrow" in error_of(answer)["message"]
    assert (await client.get("/api/pairs", params={"format": "pickle"})).status_code == 422


async def test_a_model_that_is_down_is_503_with_a_sentence(
    client: httpx.AsyncClient, fake: FakeStudio
) -> None:
    fake.labeling.is_down = True
    answer = await client.post("/api/comparisons", json={})
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "engine_unavailable"
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/comparisons", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}),
        ("POST", "/api/comparisons", {"prompt": ""}),
        ("POST", "/api/comparisons", {"messages": []}),
        ("POST", "/api/comparisons", {"messages": [{"role": "tool", "content": "b"}]}),
        ("POST", "/api/comparisons", {"messages": [{"role": "assistant", "content": "b"}]}),
        ("POST", "/api/comparisons", {"prompt": "a", "version": "v1"}),
        ("POST", "/api/comparisons", {"prompt": 5}),
        ("POST", "/api/comparisons", {"prompt": "x" * 40_000}),
        ("POST", "/api/comparisons", [1]),
        ("POST", "/api/comparisons/c1/vote", {}),
        ("POST", "/api/comparisons/c1/vote", {"choice": "c"}),
        ("POST", "/api/comparisons/c1/vote", {"choice": "a", "strength": 9}),
        ("POST", "/api/comparisons/c1/vote", {"choice": "a", "strength": True}),
        ("POST", "/api/comparisons/c1/vote", {"choice": "a", "labeler": "ann"}),
        ("POST", "/api/generate", {}),
        ("POST", "/api/generate", {"prompt": "a", "temperature": -1}),
        ("POST", "/api/generate", {"prompt": "a", "max_tokens": 10**30}),
        ("POST", "/api/generate", {"prompt": "a", "seed": 2**63}),
        ("POST", "/api/generate", {"prompt": "a", "seed": 1.5}),
        ("GET", "/api/rounds/0", None),
        ("GET", f"/api/rounds/{10**30}", None),
        ("GET", "/api/rounds/x", None),
        ("GET", "/api/rounds/1/steps?since=-1", None),
        ("POST", "/api/rounds", {"force": True}),
        ("PUT", "/api/training", None),
        ("PUT", "/api/training", {"beta": -1}),
        ("PUT", "/api/training", {"beta": "0.1"}),
        ("PUT", "/api/training", {"loss": "best"}),
        ("PUT", "/api/training", {"loss": "hinge", "label_smoothing": 0.1}),
        ("PUT", "/api/training", {"epochs": 1.5}),
        ("PUT", "/api/training", {"lora_rank": 10**400}),
        ("PUT", "/api/training", {"early_stop_patience": -1}),
        ("PUT", "/api/training", {"ld_alpha": 1.5}),
        ("PUT", "/api/training", {"soft_labels": 1}),
        ("PUT", "/api/training", {"batch_size": 4}),
        ("GET", "/api/pairs?format=", None),
    ],
)
async def test_bad_input_is_422_with_one_sentence(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    await client.post("/api/comparisons", json={})
    answer = await client.request(method, path, json=body)
    assert answer.status_code == 422
    assert error_of(answer)["code"] == "bad_input"


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": ',
        b"\xff\xfe",
        b'{"prompt": "a", "temperature": 1e309}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\u0000"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"\\ud800": 1}',
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/api/comparisons", "/v1/chat/completions"])
async def test_hostile_json_is_a_4xx_in_our_form(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert {"code", "message"} <= set(answer.json()["error"])


async def test_an_unexpected_error_is_a_bare_500_logged_once(
    client: httpx.AsyncClient, fake: FakeStudio, caplog: pytest.LogCaptureFixture
) -> None:
    fake.rounds.crash = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/api/status")
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal"
    assert "secret" not in answer.text
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/api/rounds"), ("GET", "/api/nothing"), ("POST", "/api/x")]
)
async def test_an_unknown_route_or_method_is_not_answered_by_the_pages(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 404
    assert error_of(answer)["message"].startswith(f"{method} {path}: no such route")


async def test_pages_come_after_our_routes(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).text == "<p>page</p>"
    assert (await client.get("/api/status")).headers["content-type"] == "application/json"
