"""The real OpenAI client, unchanged, against the real processes."""

import openai
import pytest

QUESTION = [{"role": "user", "content": "What does os.path.join do?"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "demo"
    assert client.models.retrieve("demo").id == "demo"


def test_chat(client):
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert "path" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat_joins_to_the_plain_one(client):
    plain = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_completion_with_everything(client):
    answer = client.completions.create(
        model="demo",
        prompt=["def read_lines(path):", "import os\n"],
        max_tokens=12,
        n=2,
        temperature=0.8,
        top_p=0.9,
        seed=7,
        logprobs=3,
        echo=True,
        presence_penalty=0.2,
        frequency_penalty=0.2,
        logit_bias={"100": -5},
        extra_body={"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text.startswith("def read_lines(path):")
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.usage.completion_tokens == 4 * 12
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None  # the first token of the prompt follows nothing
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert "".join(logprobs.tokens).endswith(answer.choices[0].text[-5:])


def test_the_same_seed_gives_the_same_text(client):
    def ask(seed):
        return (
            client.completions.create(model="demo", prompt="import", max_tokens=30, temperature=1, seed=seed)
            .choices[0]
            .text
        )

    assert ask(5) == ask(5)
    assert ask(5) != ask(6)


def test_a_stop_string_is_cut_off(client):
    whole = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    text = whole.choices[0].message.content
    stop = text[20:26]
    cut = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_an_equal_prompt_is_found_in_the_cache(client):
    prompt = "def " + "join_all_of_them(" * 30
    first, second = (
        client.completions.create(model="demo", prompt=prompt, max_tokens=2).usage for _ in range(2)
    )
    assert first.prompt_tokens_details.cached_tokens == 0
    cached = second.prompt_tokens_details.cached_tokens
    assert cached == (first.prompt_tokens - 1) // 16 * 16


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "gpt-5"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "maximum context length is 2048"),
        ({"extra_body": {"beam_width": 4}}, openai.BadRequestError, "beam_width"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, "top_logprobs"),
    ],
)
def test_mistakes_are_told(client, change, error, says):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "demo", "messages": QUESTION, **change})
    assert says in caught.value.message
    assert set(caught.value.body) == {"message", "type", "param", "code"}
