"""Prompts and answers in spans, as the conventions have them, and bounded."""

import json

import pytest

from gateway.trace_content import MOST_CHARACTERS, input_messages, output_messages


def contents(text):
    return [message["parts"][0]["content"] for message in json.loads(text)]


def test_the_last_messages_are_the_ones_that_are_there():
    long = "x" * (MOST_CHARACTERS - 2)
    turns = [
        {"role": role, "content": text} for role, text in (("system", "s"), ("user", "abcd"), ("user", long))
    ]
    assert contents(input_messages(turns)) == ["…cd", long]
    assert [message["role"] for message in json.loads(input_messages(turns))] == ["user", "user"]


def test_answers_share_the_room():
    told = contents(output_messages([("y" * MOST_CHARACTERS, "stop"), ("short", "length")]))
    assert told == ["y" * (MOST_CHARACTERS // 2) + "…", "short"]


@pytest.mark.parametrize("turns", [[], [{"role": "user", "content": ""}]])
def test_little_is_no_problem(turns):
    assert len(json.loads(input_messages(turns))) == len(turns)
