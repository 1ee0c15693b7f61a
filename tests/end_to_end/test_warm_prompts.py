"""`--warm-prompts`: after start the first chat with a common system prompt finds it computed."""

import asyncio
import json

import openai

from tests.end_to_end.stack import Stack
from tests.end_to_end.test_mistakes import batchyard, one_line, ports_for

SYSTEM = "You answer questions about Python's standard library, in one sentence, without an example. " * 3


async def cached(stack, system):
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "What is os.path.join?"}]
    async with openai.AsyncOpenAI(base_url=f"{stack.base_url}/v1", api_key="none") as api:
        answer = await api.chat.completions.create(model="demo", messages=turns, max_tokens=2)
        return answer.usage.prompt_tokens_details.cached_tokens


async def test_the_first_chat_and_the_first_after_the_worker_came_back(tmp_path):
    path = tmp_path / "warm.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "system", "content": SYSTEM}]}), "utf-8")
    stack = Stack(tmp_path, gateway=["--warm-prompts", str(path)])
    await asyncio.to_thread(stack.__enter__)
    try:
        assert await cached(stack, SYSTEM.replace("Python", "Perl")) == 0
        assert await cached(stack, SYSTEM) >= 48
        stack.kill("worker")
        await asyncio.to_thread(stack.start, "worker")
        await asyncio.to_thread(stack.wait_ready)
        assert await cached(stack, SYSTEM) >= 48
    finally:
        await asyncio.to_thread(stack.__exit__)


def test_a_bad_file_is_one_line(tmp_path):
    path = tmp_path / "warm.jsonl"
    path.write_text('Fine.\n{"prompt": }\n', "utf-8")
    for command in ("gateway", "serve"):
        run = batchyard(command, "--warm-prompts", str(path), *ports_for(command))
        assert f"line 2 of {path}: not JSON" in one_line(run)
