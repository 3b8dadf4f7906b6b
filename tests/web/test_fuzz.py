"""No body, path or query makes a route answer 5xx, or a refusal in any form but ours.

A stand-in for schemathesis: hypothesis draws near-valid bodies (right keys, wild values) and plain
nonsense. Behind the routes are the real services over a real database with a healthy fake engine, so every
5xx is a fault of ours.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from dpo_studio.web.app import create_app
from tests.web.conftest import BASE_URL, mount_page, no_lifespan
from tests.web.fakes import FakeStudio
from tests.web.real import real_studio

hostile_texts = st.sampled_from(
    [
        "",
        "live",
        "base",
        "v1",
        "a",
        "user",
        "\x00",
        "\u202e",
        "\ud800",
        "x" * 40_000,
        "../../etc/passwd",
        "🙂",
        "__proto__",
    ]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400]),
    st.floats(),
    st.text(max_size=20),
    hostile_texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6) | hostile_texts, inner, max_size=4)
    ),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system"]) | scalars,
            "content": st.text(max_size=9) | values,
        }
    ),
    max_size=4,
)


def bodies(**fields: Any) -> st.SearchStrategy[Any]:
    """Dictionaries with some of the route's keys: plausible or wild values, sometimes an unknown key."""
    plausible = {name: strategy | values for name, strategy in fields.items()}
    return st.one_of(st.fixed_dictionaries({}, optional={**plausible, "extra": values}), values)


prompts = {"prompt": st.text(max_size=9), "messages": messages}
sampling = {
    "temperature": st.floats(0, 2),
    "max_tokens": st.integers(1, 9),
    "seed": st.integers(0, 9),
    "top_p": st.floats(0, 1),
}
ROUTES: dict[str, st.SearchStrategy[Any]] = {
    "/api/comparisons": bodies(**prompts),
    "/api/comparisons/OPEN/vote": bodies(
        choice=st.sampled_from(["a", "b", "tie", "both_bad", "skip"]),
        strength=st.integers(1, 3),
        reasons=st.lists(st.text(max_size=5), max_size=3),
        note=st.text(max_size=5),
        edited=st.text(max_size=5),
    ),
    "/api/generate": bodies(version=st.sampled_from(["live", "base", "v9"]), **prompts, **sampling),
    "/api/versions/base/promote": bodies(),
    "/api/rounds": bodies(),
    "/api/training": bodies(
        loss=st.sampled_from(["sigmoid", "ipo", "hinge", "robust", "plackett_luce"]),
        beta=st.floats(),
        label_smoothing=st.floats(-1, 1),
        sft_weight=st.floats(),
        epochs=st.integers(),
        lora_rank=st.integers(),
        early_stop_patience=st.integers(),
        ld_alpha=st.floats(),
        soft_labels=st.booleans(),
    ),
    "/v1/chat/completions": bodies(
        model=st.sampled_from(["live", "base", "v9"]),
        messages=messages,
        n=st.integers(1, 4),
        stop=st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=4),
        **sampling,
    ),
}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One application for all examples: what one leaves behind must not break the next."""
    with real_studio(tmp_path_factory.mktemp("fuzz")) as studio:
        app = create_app(studio, mounts=mount_page, lifespan=no_lifespan)
        with TestClient(app, base_url=BASE_URL) as client:
            yield client  # type: ignore[misc]


def check(response: httpx.Response) -> None:
    """2xx, or 4xx in our form."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert {"code", "message"} <= set(error)
        assert error["code"] and error["message"]
        assert len(error["message"]) < 1000


@pytest.mark.parametrize("path", list(ROUTES))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_json_body_makes_a_5xx(fuzzed: httpx.Client, path: str, data: st.DataObject) -> None:
    body = json.dumps(data.draw(ROUTES[path])).encode()
    if "OPEN" in path:
        path = path.replace("OPEN", fuzzed.post("/api/comparisons", json={}).json()["id"])
    method = "PUT" if path == "/api/training" else "POST"
    check(fuzzed.request(method, path, content=body, headers={"Content-Type": "application/json"}))


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from([*ROUTES, "/api/prompts", "/api/pairs"]), body=st.binary(max_size=200))
def test_no_bytes_make_a_5xx(fuzzed: httpx.Client, path: str, body: bytes) -> None:
    check(fuzzed.post(path, content=body, headers={"Content-Type": "application/json"}))


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    form=st.sampled_from(
        [
            "/api/rounds/{}",
            "/api/rounds/{}/steps",
            "/api/rounds/1/steps?since={}",
            "/api/rounds/{}/cancel",
            "/api/versions/{}/promote",
            "/api/comparisons/{}/vote",
            "/api/votes/{}",
            "/api/pairs?format={}",
            "/v1/models/{}",
        ]
    ),
    piece=st.one_of(
        st.integers().map(str),
        st.sampled_from(
            ["%00", "%ff%fe", "%ed%a0%80", "..%2f..%2fetc", "1e309", "9" * 400, "nan", "%F0%9F%99%82"]
        ),
    ),
)
def test_no_path_or_query_makes_a_5xx(fuzzed: httpx.Client, method: str, form: str, piece: str) -> None:
    check(fuzzed.request(method, form.format(piece)))


def test_the_fuzz_sees_a_5xx_when_there_is_one(app: FastAPI, fake: FakeStudio) -> None:
    """Negative control."""
    fake.rounds.crash = ValueError("bug")
    with TestClient(app, base_url=BASE_URL) as client, pytest.raises(AssertionError):
        check(client.get("/api/status"))  # type: ignore[arg-type]
