"""Streams, byte for byte."""

import json

import pytest

from gateway.schema.chat import ChatCompletionChunk
from gateway.schema.completion import CompletionChunk
from tests.gateway.api_fakes import FakeGenerator, in_process, make_app

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": True}
COMPLETION = {"model": "demo", "prompt": "hi", "stream": True}


async def stream_of(path, body, generator=None):
    """The raw bytes, with the time, which no test can know, as 0."""
    async with in_process(make_app(generator)) as client:
        response = await client.post(path, json=body, headers={"X-Request-Id": "r1"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *_, last = response.content.split(b"\n\n")
    assert last == b""
    first = json.loads(response.text.split("\n\n")[0].removeprefix("data: "))
    return response.text.replace(f'"created":{first["created"]},', '"created":0,')


def chunks_of(text):
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [event.removeprefix("data: ") for event in events]
    model = CompletionChunk if '"text_completion"' in text else ChatCompletionChunk
    for chunk in chunks:
        model.model_validate_json(chunk)
    return [json.loads(chunk) for chunk in chunks]


async def test_chat_byte_for_byte():
    text = await stream_of("/v1/chat/completions", CHAT, FakeGenerator(["Hi", ' "ö"\n']))
    head = 'data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"demo","choices":['
    assert text == (
        head + '{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,'
        '"finish_reason":null}]}\n\n'
        + head + '{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}\n\n'
        + head + '{"index":0,"delta":{"content":" \\"ö\\"\\n"},"logprobs":null,"finish_reason":null}]}\n\n'
        + head + '{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}]}\n\n'
        "data: [DONE]\n\n"
    )  # fmt: skip


async def test_completion_byte_for_byte():
    text = await stream_of("/v1/completions", COMPLETION, FakeGenerator(["Hi", " there"]))
    head = 'data: {"id":"cmpl-r1","object":"text_completion","created":0,"model":"demo","choices":['
    assert text == (
        head + '{"index":0,"text":"Hi","logprobs":null,"finish_reason":null}]}\n\n'
        + head + '{"index":0,"text":" there","logprobs":null,"finish_reason":"stop","stop_reason":null}]}\n\n'
        "data: [DONE]\n\n"
    )  # fmt: skip


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
async def test_usage_is_in_the_last_chunk_and_null_before(path, body):
    body = body | {"stream_options": {"include_usage": True}}
    *chunks, last = chunks_of(await stream_of(path, body))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert set(last) == set(chunks[0])


async def test_choices_are_told_apart_by_index():
    chunks = chunks_of(await stream_of("/v1/chat/completions", CHAT | {"n": 3}))
    texts, reasons, roles = ["", "", ""], [None] * 3, [0] * 3
    for [choice] in (chunk["choices"] for chunk in chunks):
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] = choice["finish_reason"]
        roles[choice["index"]] += "role" in choice["delta"]
    assert texts == ["Hello wörld!"] * 3
    assert reasons == ["stop"] * 3
    assert roles == [1] * 3


async def test_logprobs_come_with_their_tokens():
    chunks = chunks_of(await stream_of("/v1/chat/completions", CHAT | {"logprobs": True}))
    tokens = [
        entry["token"]
        for chunk in chunks
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert tokens == ["Hel", "lo", " wörld", "!"]
    chunks = chunks_of(await stream_of("/v1/completions", COMPLETION | {"logprobs": 0}))
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [3], [5], [11]]


async def test_echo_comes_first():
    chunks = chunks_of(await stream_of("/v1/completions", COMPLETION | {"echo": True}))
    assert chunks[0]["choices"][0]["text"] == "hiHel"
