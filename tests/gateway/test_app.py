"""The REST API without a network: what it answers, whole and as a stream."""

import json

import pytest

from batchyard.errors import InvalidRequest, Overloaded, SchedulerLost, WorkerLost
from gateway.body import MAX_BODY
from tests.gateway.api_fakes import FakeGenerator, description, in_process, make_app

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "demo", "prompt": "hi"}
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}


async def post(app, path, body, **headers):
    async with in_process(app) as client:
        return await client.post(path, json=body, headers=headers)


async def post_bytes(app, path, content, content_type="application/json"):
    async with in_process(app) as client:
        return await client.post(path, content=content, headers={"Content-Type": content_type})


async def get(app, path):
    async with in_process(app) as client:
        return await client.get(path)


def error_of(response) -> dict:
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


async def test_chat():
    response = await post(make_app(), "/v1/chat/completions", CHAT)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello wörld!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 9},
    }


async def test_chat_logprobs():
    body = CHAT | {"logprobs": True, "top_logprobs": 2, "max_tokens": 1}
    choice = (await post(make_app(), "/v1/chat/completions", body)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "Hel",
                "logprob": -0.5,
                "bytes": [72, 101, 108],
                "top_logprobs": [
                    {"token": "alt0", "logprob": -1.0, "bytes": [97, 108, 116, 48]},
                    {"token": "alt1", "logprob": -2.0, "bytes": [97, 108, 116, 49]},
                ],
            }
        ],
        "refusal": None,
    }


async def test_completion_of_several_prompts_and_choices():
    generator = FakeGenerator()
    body = {"model": "demo", "prompt": ["ab", "c"], "n": 2, "seed": 5, "cache_salt": "s"}
    response = await post(make_app(generator), "/v1/completions", body, **{"X-Request-Id": "mine"})
    answer = response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 3  # each prompt once
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    asked = sorted(generator.requests, key=lambda request: request.request_id)
    assert [request.request_id for request in asked] == ["mine-0", "mine-1", "mine-2", "mine-3"]
    assert [request.prompt_ids for request in asked] == [(97, 98)] * 2 + [(99,)] * 2
    seeds = [request.params.seed for request in asked]
    assert seeds[0] == seeds[2] == 5
    assert seeds[1] == seeds[3] != 5
    assert {request.terms.cache_salt for request in asked} == {"s"}


async def test_completion_of_token_ids():
    generator = FakeGenerator()
    await post(make_app(generator), "/v1/completions", {"model": "demo", "prompt": [[1, 2], [3]]})
    assert [request.prompt_ids for request in generator.requests] == [(1, 2), (3,)]


@pytest.mark.parametrize("prompt", ["hi", [104, 105]])
async def test_echo_with_logprobs(prompt):
    body = {"model": "demo", "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 2}
    choice = (await post(make_app(), "/v1/completions", body)).json()["choices"][0]
    assert choice["text"] == "hiHello"
    assert choice["logprobs"] == {
        "tokens": ["h", "i", "Hel", "lo"],
        "token_logprobs": [None, -2.0, -0.5, -0.5],
        "top_logprobs": [None, {"i": -2.0}, {"alt0": -1.0, "Hel": -0.5}, {"alt0": -1.0, "lo": -0.5}],
        "text_offset": [0, 1, 2, 5],
    }


@pytest.mark.parametrize("logprobs", [None, 0])
async def test_echo_of_the_prompt_alone(logprobs):
    body = {"model": "demo", "prompt": "hi", "echo": True, "max_tokens": 0, "logprobs": logprobs}
    answer = (await post(make_app(), "/v1/completions", body)).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert answer["usage"]["completion_tokens"] == 0
    if logprobs is None:
        assert choice["logprobs"] is None
    else:
        assert choice["logprobs"]["token_logprobs"] == [None, -2.0]


async def test_a_prompt_without_tokens_is_refused():
    response = await post(make_app(), "/v1/completions", {"model": "demo", "prompt": "", "echo": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InvalidRequest("too long", "prompt"), 400, None),
        (Overloaded("full", 2.5), 429, "3"),
        (SchedulerLost("away"), 503, "3"),
        (WorkerLost("gone"), 500, None),
        (ZeroDivisionError("secret"), 500, None),
    ],
)
async def test_errors_before_the_first_token_have_a_status(path, stream, error, status, retry_after):
    app = make_app(FakeGenerator(fails_with=error))
    response = await post(app, path, PATHS[path] | {"stream": stream})
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert "secret" not in error_of(response)["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_an_error_in_mid_stream_is_an_event_and_the_end(path):
    app = make_app(FakeGenerator(fails_with=Overloaded("full"), fails_after=2))
    response = await post(app, path, PATHS[path] | {"stream": True})
    assert response.status_code == 200
    *_, last = response.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "overloaded"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model": "\\ud800"}', b"[" * 10**5]
)
async def test_bodies_that_are_no_json_object(path, content):
    response = await post_bytes(make_app(), path, content)
    assert response.status_code == 400
    error_of(response)


@pytest.mark.parametrize("path", PATHS)
async def test_other_content_types(path):
    response = await post_bytes(make_app(), path, b"{}", "text/plain")
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


async def test_a_body_without_end_is_cut_off():
    async def endless():
        for _ in range(MAX_BODY // 2**20 + 1):
            yield b" " * 2**20

    response = await post_bytes(make_app(), "/v1/completions", endless())
    assert response.status_code == 413
    error_of(response)


@pytest.mark.parametrize("path", PATHS)
async def test_unknown_models(path):
    response = await post(make_app(), path, PATHS[path] | {"model": "nope"})
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize("path", PATHS)
async def test_parameters_that_do_not_fit_the_model(path):
    response = await post(make_app(), path, PATHS[path] | {"logit_bias": {"999": 1}})
    assert response.status_code == 400
    assert error_of(response)["param"] == "logit_bias"


async def test_too_many_answers():
    body = {"model": "demo", "prompt": ["x"] * 1000, "n": 5}
    response = await post(make_app(), "/v1/completions", body)
    assert response.status_code == 400
    assert error_of(response)["param"] == "n"


async def test_unknown_paths_and_methods():
    async with in_process(make_app()) as client:
        missing = await client.get("/v1/nothing")
        wrong = await client.get("/v1/completions")
        slash = await client.post("/v1/completions/", json=COMPLETION)
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(wrong)["code"] == "method_not_allowed"
    assert slash.status_code == 404


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2:3_x", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("ä", False), ("", False)],
)
async def test_request_ids(given, kept):
    headers = {"X-Request-Id": given.encode()}
    async with in_process(make_app()) as client:
        response = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    told = response.headers["x-request-id"]
    assert (told == given) == kept
    assert response.json()["id"] == f"chatcmpl-{told}"


async def test_errors_have_a_request_id_too():
    assert "x-request-id" in (await get(make_app(), "/nothing")).headers


async def test_models():
    app = make_app(model="org/name")
    everything = (await get(app, "/v1/models")).json()
    card = (await get(app, "/v1/models/org/name")).json()
    assert everything == {"object": "list", "data": [card]}
    assert (card["id"], card["object"], card["max_model_len"]) == ("org/name", "model", 4096)
    assert (await get(app, "/v1/models/other")).status_code == 404


async def test_health_is_of_the_process_alone():
    async def lost():
        raise SchedulerLost("the scheduler cannot be reached now")

    app = make_app(describe=lost, backend=lost)
    assert (await get(app, "/health")).json() == {"status": "ok"}
    ready = await get(app, "/ready")
    assert (ready.status_code, error_of(ready)["message"]) == (503, "the scheduler cannot be reached now")
    for path, body in PATHS.items():
        assert (await post(app, path, body)).status_code == 503
    assert (await get(app, "/v1/models")).status_code == 503


async def test_ready():
    assert (await get(make_app(), "/ready")).json() == {"status": "ready"}


async def test_not_ready_says_why():
    async def stalled():
        return description(ready=False)

    async def alone():
        empty = description(ready=False)
        empty.workers.clear()
        return empty

    async def drained():
        empty = description(ready=False)
        empty.workers[0].draining = True
        return empty

    async def starting():
        young = description()
        young.ready = False
        return young

    for describe, reason in [
        (stalled, "worker-0 for 60 s"),
        (alone, "No worker is connected"),
        (drained, "No worker is connected to the scheduler. Drained: worker-0."),
        (starting, "The scheduler is not ready"),
    ]:
        response = await get(make_app(describe=describe), "/ready")
        assert (response.status_code, error_of(response)["code"]) == (503, "not_ready")
        assert reason in error_of(response)["message"]
