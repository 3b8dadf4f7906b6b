"""Gradio's wire format with plain httpx: what an attacker, or a test in a hurry, would send."""

import json
from typing import Any

import httpx

SESSION = "session-of-a-test"


class GradioHttp:
    """One visitor without a browser; a context manager."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)
        self.config: dict[str, Any] = self.http.get("/config").json()

    def __enter__(self) -> "GradioHttp":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def functions(self, api_name: str) -> list[dict[str, Any]]:
        """Every event function whose name begins so."""
        named = [one for one in self.config["dependencies"] if str(one["api_name"]).startswith(api_name)]
        assert named, f"no function is called {api_name}"
        return named

    def run(self, api_name: str, data: list[Any]) -> httpx.Response:
        """Call a function past the queue."""
        body = {"data": data, "fn_index": self.functions(api_name)[0]["id"], "session_hash": SESSION}
        return self.http.post("/gradio_api/run/predict", json=body)

    def queue(self, api_name: str, data: list[Any]) -> list[dict[str, Any]]:
        """Call a function through the queue; every message of its stream."""
        body = {"data": data, "fn_index": self.functions(api_name)[0]["id"], "session_hash": SESSION}
        joined = self.http.post("/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        messages = []
        with self.http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": SESSION}, timeout=60
        ) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    messages.append(json.loads(line[5:]))
                    if messages[-1]["msg"] == "process_completed":
                        break
        return messages


def final_data(messages: list[dict[str, Any]]) -> list[Any]:
    """The outputs of a streamed call's last message, its differences applied."""
    data: list[Any] = []
    for message in messages:
        output = message.get("output") or {}
        if message["msg"] == "process_generating" and data:
            data = [_patched(old, new) for old, new in zip(data, output["data"], strict=True)]
        elif message["msg"] == "process_generating":
            data = output["data"]
    return data


def _patched(value: Any, edits: Any) -> Any:
    """Apply Gradio's ["replace" | "append" | "add" | "delete", path, value] edits at the top level."""
    for action, path, change in edits:
        if action == "append" and not path:
            value = value + change
        elif action == "replace" and not path:
            value = change
        elif action in ("replace", "append", "add") and len(path) == 1:
            value = {**value, path[0]: value[path[0]] + change if action == "append" else change}
        elif action == "delete" and len(path) == 1:
            value = {key: kept for key, kept in value.items() if key != path[0]}
        else:
            raise AssertionError(f"an edit that pages of ours do not cause: {action} {path}")
    return value
