"""What requests are accepted, and that the others are refused by the name of the parameter at fault."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.errors import bad_parameter
from gateway.schema.chat import ChatRequest
from gateway.schema.completion import CompletionRequest

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "demo", "prompt": "hi"}

SHARED_GOOD: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 2},
    {"temperature": 0.7, "top_p": 1, "top_k": -1, "min_p": 1},
    {"top_p": 0.001, "top_k": 0, "min_p": 0},
    {"repetition_penalty": 1.3, "presence_penalty": -2, "frequency_penalty": 2},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
    {"stop": "\n"},
    {"stop": ["a"] * 16},
    {"stop": []},
    {"stop_token_ids": [0, 5], "ignore_eos": True, "min_tokens": 3},
    {"n": 128},
    {"logit_bias": {"5": -100, "6": 100.0}},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
    {"include_stop_str_in_output": True, "skip_special_tokens": False},
    {"cache_salt": "tenant", "user": "somebody"},
    {"temperature": None, "stop": None, "seed": None, "n": None, "stream": None, "logit_bias": None},
]

SHARED_BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"stop": {}}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [True]}, "stop_token_ids[0]"),
    ({"stop_token_ids": "5"}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"ignore_eos": "true"}, "ignore_eos"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"user": 5}, "user"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"no_such_thing": 1}, "no_such_thing"),
    ({"guided_json": None}, "guided_json"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"x" * 200: 1}, "x" * 200),
]

CHAT_GOOD: list[dict[str, Any]] = [
    {"max_tokens": 5},
    {"max_completion_tokens": 5},
    {"max_completion_tokens": 5, "max_tokens": 5},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 20},
    {"logprobs": False},
    {"messages": [{"role": role, "content": "x"} for role in ("system", "developer", "user", "assistant")]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        ]
    },
    {"messages": [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": []}]},
    # What asks for nothing.
    {"tools": None, "tool_choice": "none", "functions": [], "function_call": "none"},
    {"tools": [], "parallel_tool_calls": True, "response_format": {"type": "text"}, "store": False},
    {"service_tier": "auto", "modalities": ["text"], "metadata": {}, "audio": None, "prediction": None},
    {"reasoning_effort": None, "verbosity": None, "web_search_options": None, "safety_identifier": None},
]

CHAT_BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x", "mood": "n"}]}, "messages[0].mood"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"store": True}, "store"),
    ({"store": 0}, "store"),
    ({"metadata": {"a": "b"}}, "metadata"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"prompt": "x"}, "prompt"),
    ({"echo": True}, "echo"),
]

COMPLETION_GOOD: list[dict[str, Any]] = [
    {"prompt": ""},
    {"prompt": ["a", "b"]},
    {"prompt": [1, 2, 3]},
    {"prompt": [[1, 2], [3]]},
    {"max_tokens": None},
    {"echo": True, "max_tokens": 0},
    {"echo": True, "logprobs": 0},
    {"logprobs": 20},
    {"n": 3, "best_of": 3},
    {"best_of": 1},
    {"suffix": None},
    {"suffix": ""},
]

COMPLETION_BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [[1], [1.5]]}, "prompt[1][0]"),
    ({"prompt": ["x"] * 1025}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"messages": []}, "messages"),
    ({"top_logprobs": 1}, "top_logprobs"),
]


def parse(model: Any, base: dict[str, Any], change: dict[str, Any]) -> Any:
    return model.model_validate_json(json.dumps(base | change))


@pytest.mark.parametrize("change", SHARED_GOOD + CHAT_GOOD)
def test_chat_accepts(change):
    parse(ChatRequest, CHAT, change)


@pytest.mark.parametrize("change", SHARED_GOOD + COMPLETION_GOOD)
def test_completion_accepts(change):
    parse(CompletionRequest, COMPLETION, change)


@pytest.mark.parametrize(("change", "param"), SHARED_BAD + CHAT_BAD)
def test_chat_refuses_by_name(change, param):
    with pytest.raises(ValidationError) as caught:
        parse(ChatRequest, CHAT, change)
    assert_names(caught.value, param)


@pytest.mark.parametrize(("change", "param"), SHARED_BAD + COMPLETION_BAD)
def test_completion_refuses_by_name(change, param):
    with pytest.raises(ValidationError) as caught:
        parse(CompletionRequest, COMPLETION, change)
    assert_names(caught.value, param)


def assert_names(error: ValidationError, param: str) -> None:
    told = bad_parameter(error)
    assert told.param == param
    assert param[:100] in str(told)
    assert len(str(told)) < 400
    assert "<" not in str(told)


@pytest.mark.parametrize(
    ("model", "change", "says"),
    [
        (CompletionRequest, {"prompt": 5}, "a text, token ids, or a list of either"),
        (CompletionRequest, {"prompt": None}, "a text, token ids, or a list of either"),
        (CompletionRequest, {"prompt": "x", "stop": 5}, "a text or a list of texts"),
        (ChatRequest, {"messages": [{"role": "user", "content": None}]}, "a text or a list of parts"),
    ],
)
def test_where_several_kinds_are_accepted_all_are_named(model, change, says):
    with pytest.raises(ValidationError) as caught:
        parse(model, {"model": "demo"}, change)
    assert says in str(bad_parameter(caught.value))


def test_a_long_name_comes_back_cut():
    with pytest.raises(ValidationError) as caught:
        parse(CompletionRequest, COMPLETION, {"x" * 100_000: 1})
    assert bad_parameter(caught.value).param == "x" * 256 + "…"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"no_such_thing": 1}, "unknown_parameter"),
        ({"suffix": "x"}, "unsupported_parameter"),
        ({"temperature": 3}, "invalid_value"),
        ({"best_of": 2}, "invalid_value"),
    ],
)
def test_codes(change, code):
    with pytest.raises(ValidationError) as caught:
        parse(CompletionRequest, COMPLETION, change)
    assert bad_parameter(caught.value).code == code


def test_a_missing_parameter_has_its_own_code():
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate_json('{"model": "demo"}')
    told = bad_parameter(caught.value)
    assert (told.param, told.code) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hi", ["hi"]),
        (["hi", "ho"], ["hi", "ho"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompts_one_by_one(prompt, prompts):
    assert parse(CompletionRequest, COMPLETION, {"prompt": prompt}).prompts == prompts


def test_message_for_the_template():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse(ChatRequest, CHAT, {"messages": [{"role": "developer", "content": parts}]})
    assert request.messages[0].template_turn() == {"role": "system", "content": "ab"}


@pytest.mark.parametrize(
    ("change", "limit"),
    [({}, None), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6)],
)
def test_answer_limit(change, limit):
    assert parse(ChatRequest, CHAT, change).answer_limit == limit


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
    ],
)
def test_number_of_logprobs(change, count):
    assert parse(ChatRequest, CHAT, change).num_logprobs == count


def test_the_default_length_of_a_completion_is_openais():
    assert parse(CompletionRequest, COMPLETION, {}).max_tokens == 16
