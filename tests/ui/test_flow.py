"""Label → vote → next over HTTP, as the browser does it, without a browser."""

from collections.abc import Iterator

import pytest

from tests.ui.gradio_http import GradioHttp, final_data
from tests.ui.serving import Served

pytestmark = pytest.mark.integration


@pytest.fixture
def visitor(served: Served) -> Iterator[GradioHttp]:
    with GradioHttp(served.url) as one:
        yield one


def test_a_visitor_gets_a_pair_votes_and_gets_the_next(visitor: GradioHttp) -> None:
    first = final_data(visitor.queue("resume", []))
    prompt, a, b, comparison_id = first[:4]
    assert prompt and a and b and a != b
    sentence = visitor.run("vote", [comparison_id]).json()["data"][0]
    assert sentence.startswith("**A is better**")
    second = final_data(visitor.queue("resume", []))
    assert second[3] != comparison_id


def test_both_sides_of_compare_stream_to_the_end(visitor: GradioHttp) -> None:
    messages = visitor.queue("compare", ["Hello", "base", "base", 3, 0.5])
    left_caption, right_caption, left, right, *_ = final_data(messages)
    assert left_caption.startswith("**base** – ") and right_caption.startswith("**base** – ")
    assert left == right != ""


def test_the_api_feeds_the_header(visitor: GradioHttp) -> None:
    status = visitor.http.get("/api/status").json()
    assert status["live"] == "base" and status["engine"]["state"] == "ready"
