"""Requests made up from the service's own OpenAPI document, good and bad ones, against the real processes."""

import asyncio
import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

MAX_TOKENS = 4
MAX_ANSWERS = 3


@pytest.fixture(scope="module")
def api(server):
    return schemathesis.openapi.from_url(f"{server.base_url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
@pytest.mark.parametrize(
    ("path", "prompt"), [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")]
)
def test_whatever_is_asked_is_answered_or_refused_with_a_reason(server, api, path, prompt, mode):
    statuses = set()

    @given(api[path]["POST"].as_strategy(generation_mode=mode))
    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        if isinstance(case.body, dict):
            make_cheap(case.body, prompt)
        reply = case.call(timeout=60)
        statuses.add(reply.status_code)
        check(reply)

    ask()
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses
    asyncio.run(server.idle())


def make_cheap(body, prompt):
    """What is asked for, and how, is made up; but answers are short and few."""
    for name in ("max_tokens", "max_completion_tokens"):
        if type(body.get(name)) is int:
            body[name] = min(body[name], MAX_TOKENS)
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = MAX_TOKENS
    for name in ("n", "best_of"):
        if type(body.get(name)) is int:
            body[name] = min(body[name], MAX_ANSWERS)
    if isinstance(body.get(prompt), list):
        body[prompt] = body[prompt][:MAX_ANSWERS]


def check(reply):
    if reply.status_code == 200:
        check_answer(reply)
        return
    assert reply.status_code in (400, 404, 413, 415)
    body = json.loads(reply.content)
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"]
    assert 0 < len(body["error"]["message"]) < 1000


def check_answer(reply):
    if reply.headers["content-type"] == ["application/json"]:
        assert json.loads(reply.content)["choices"]
        return
    *events, done = reply.content.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    assert not any("error" in json.loads(event.removeprefix("data: ")) for event in events)
