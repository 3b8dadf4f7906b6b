"""The routes over the real services: what HTTP promises, the database keeps."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dpo_studio.web.app import create_app
from tests.web.conftest import BASE_URL, mount_page, no_lifespan
from tests.web.real import real_studio


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    with real_studio(tmp_path / "storage") as studio:
        app = create_app(studio, mounts=mount_page, lifespan=no_lifespan)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
            yield client


async def ask(client: httpx.AsyncClient, body: object) -> dict[str, Any]:
    """A comparison."""
    answer = await client.post("/api/comparisons", json=body)
    assert answer.status_code == 200, answer.text
    comparison: dict[str, Any] = answer.json()
    return comparison


async def exported(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Every pair, as TRL would read it."""
    # Not splitlines(): U+2028 inside a JSON string ends no line of JSONL.
    lines = (await client.get("/api/pairs")).text.split("\n")
    return [json.loads(line) for line in lines if line]


async def test_a_vote_becomes_a_pair_in_the_order_voted(real: httpx.AsyncClient) -> None:
    comparison = await ask(real, {"prompt": "Tea?"})
    await real.post(f"/api/comparisons/{comparison['id']}/vote", json={"choice": "b"})
    (pair,) = await exported(real)
    assert pair["prompt"] == [{"role": "user", "content": "Tea?"}]
    assert pair["chosen"][0]["content"] == comparison["b"]
    assert pair["rejected"][0]["content"] == comparison["a"]


async def test_an_open_comparison_is_handed_out_again(real: httpx.AsyncClient) -> None:
    assert await ask(real, {}) == await ask(real, {})


async def test_the_same_vote_five_times_at_once_is_one_vote(real: httpx.AsyncClient) -> None:
    comparison = await ask(real, {})
    path = f"/api/comparisons/{comparison['id']}/vote"
    answers = await asyncio.gather(*(real.post(path, json={"choice": "a"}) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["vote_id"] for answer in answers}) == 1
    assert [answer.json()["is_new"] for answer in answers].count(True) == 1
    changed = await real.post(path, json={"choice": "b"})
    assert changed.json()["is_new"]
    (pair,) = await exported(real)
    assert pair["chosen"][0]["content"] == comparison["b"]


async def test_an_undone_vote_makes_no_pair_and_may_be_given_again(real: httpx.AsyncClient) -> None:
    comparison = await ask(real, {})
    path = f"/api/comparisons/{comparison['id']}/vote"
    vote_id = (await real.post(path, json={"choice": "a"})).json()["vote_id"]
    undone = await real.delete(f"/api/votes/{vote_id}")
    assert undone.json()["id"] == comparison["id"]
    assert await exported(real) == []
    assert (await real.post(path, json={"choice": "a"})).status_code == 200
    assert len(await exported(real)) == 1


async def test_control_characters_and_surrogates_are_cleaned_on_the_way_in(real: httpx.AsyncClient) -> None:
    body = b'{"prompt": "a\\u0000b\\u0007c"}'
    headers = {"Content-Type": "application/json"}
    answer = await real.post("/api/comparisons", content=body, headers=headers)
    assert answer.json()["messages"] == [{"role": "user", "content": "abc"}]


async def test_pairs_go_round_unchanged(real: httpx.AsyncClient) -> None:
    row = {"prompt": "Täglich? 🍵\u2028", "chosen": "Ja.\n- eins", "rejected": "=1+1"}
    answer = await real.post("/api/pairs", content=json.dumps(row, ensure_ascii=False).encode())
    assert answer.json() == {"imported": 1, "duplicates": 0, "unusable": 0}
    (pair,) = await exported(real)
    assert pair["prompt"] == [{"role": "user", "content": row["prompt"]}]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (row["chosen"], row["rejected"])
    assert (await real.post("/api/pairs", content=json.dumps(row).encode())).json()["duplicates"] == 1


async def test_bad_row_7_imports_nothing_and_is_named(real: httpx.AsyncClient) -> None:
    good = [json.dumps({"prompt": f"q{n}", "chosen": "a", "rejected": "b"}) for n in range(9)]
    rows = [*good[:6], '{"prompt": "q"}', *good[6:]]
    answer = await real.post("/api/pairs", content="\n".join(rows).encode())
    assert answer.status_code == 422
    assert "line 7" in answer.json()["error"]["message"]
    assert await exported(real) == []


async def test_a_round_without_pairs_is_refused_and_one_at_a_time_queued(real: httpx.AsyncClient) -> None:
    assert (await real.post("/api/rounds")).status_code == 422
    rows = [json.dumps({"prompt": f"q{n}", "chosen": "a", "rejected": "b"}) for n in range(9)]
    await real.post("/api/pairs", content="\n".join(rows).encode())
    assert (await real.post("/api/rounds")).json() == {"round": 1}
    assert (await real.post("/api/rounds")).status_code == 409
    assert (await real.get("/api/rounds/1")).json()["status"] == "queued"
    assert (await real.post("/api/rounds/1/cancel")).json()["status"] == "cancelled"


async def test_status_and_readiness_come_from_the_services(real: httpx.AsyncClient) -> None:
    assert (await real.get("/readyz")).json() == {"status": "ready", "live": "base"}
    assert (await real.get("/api/status")).json()["base_model"] == "fake"


async def test_training_settings_are_shown_changed_used_and_reset(real: httpx.AsyncClient) -> None:
    shown = (await real.get("/api/training")).json()
    assert shown["settings"] == shown["preset"] and shown["is_preset"]
    wanted = {"beta": 0.5, "epochs": 2, "early_stop_patience": 1, "ld_alpha": 0.5, "soft_labels": True}
    changed = (await real.put("/api/training", json=wanted)).json()
    assert changed["settings"] == shown["preset"] | wanted
    assert not changed["is_preset"]
    assert (await real.get("/api/training")).json() == changed
    row = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
    await real.post("/api/pairs", content=row.encode())
    await real.post("/api/rounds")
    used = (await real.get("/api/rounds/1")).json()["settings"]
    assert {name: used[name] for name in changed["settings"]} == changed["settings"]
    assert (await real.put("/api/training", json={})).json() == shown


async def test_a_refused_training_setting_changes_nothing(real: httpx.AsyncClient) -> None:
    await real.put("/api/training", json={"beta": 0.5})
    answer = await real.put("/api/training", json={"beta": 0.2, "label_smoothing": 0.7})
    assert answer.status_code == 422
    sentence = "label_smoothing: expected 0 to below 0.5, found 0.7"
    assert answer.json()["error"]["message"] == sentence
    assert (await real.get("/api/training")).json()["settings"]["beta"] == 0.5
