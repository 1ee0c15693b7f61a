"""OpenAI's own client, unchanged, against a real server."""

import openai
import pytest

from batchyard.errors import Overloaded
from tests.gateway.api_fakes import FakeGenerator, make_app, on_a_port

TEXT = "Hello wörld!"
USER = {"role": "user", "content": "hi"}


def client_of(url: str, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def client():
    async with on_a_port(make_app()) as url, client_of(url) as client:
        yield client


async def test_models(client):
    [model] = (await client.models.list()).data
    assert model.id == "demo"
    assert (await client.models.retrieve("demo")).owned_by == "batchyard"


async def test_chat(client):
    answer = await client.chat.completions.create(model="demo", messages=[USER], temperature=0, seed=1)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 9


async def test_an_answer_can_be_sent_back(client):
    answer = await client.chat.completions.create(model="demo", messages=[USER])
    messages = [USER, answer.choices[0].message, USER]
    assert (await client.chat.completions.create(model="demo", messages=messages)).choices


async def test_chat_stream(client):
    stream = await client.chat.completions.create(
        model="demo", messages=[USER], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 4


async def test_the_clients_own_stream_helper(client):
    async with client.chat.completions.stream(model="demo", messages=[USER], logprobs=True) as stream:
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == TEXT
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ["Hel", "lo", " wörld", "!"]


async def test_completion(client):
    answer = await client.completions.create(model="demo", prompt=["a", "b"], logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["a" + TEXT, "b" + TEXT]
    assert answer.choices[0].logprobs.text_offset == [0, 1, 4, 6, 12]


async def test_completion_stream(client):
    stream = await client.completions.create(model="demo", prompt=[1, 2], stream=True, max_tokens=2)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_extra_parameters(client):
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}
    assert await client.chat.completions.create(model="demo", messages=[USER], extra_body=extra)


async def test_errors(client):
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="nope", prompt="hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="demo", messages=[USER], temperature=5)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unknown:
        await client.chat.completions.create(model="demo", messages=[USER], extra_body={"best": 1})
    assert unknown.value.param == "best"
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError) as tools:
        await client.chat.completions.create(model="demo", messages=[USER], tools=[tool])
    assert tools.value.code == "unsupported_parameter"


async def test_the_key():
    async with on_a_port(make_app(api_key="k")) as url, client_of(url, "wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "invalid_api_key"
        async with client.with_options(api_key="k") as friend:
            assert (await friend.models.list()).data


async def test_overload():
    app = make_app(FakeGenerator(fails_with=Overloaded("full", 7)))
    async with on_a_port(app) as url, client_of(url) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="demo", prompt="hi", stream=True)
    assert caught.value.response.headers["retry-after"] == "7"


async def test_an_error_in_mid_stream():
    app = make_app(FakeGenerator(fails_with=Overloaded("full"), fails_after=2))
    async with on_a_port(app) as url, client_of(url) as client:
        stream = await client.chat.completions.create(model="demo", messages=[USER], stream=True)
        with pytest.raises(openai.APIError, match="full"):
            async for _ in stream:
                pass
