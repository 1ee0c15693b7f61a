"""A high priority pauses rows of the real model, and the texts of those stay the same."""

import asyncio

from batchyard.demo import MODEL_DIR
from gateway.tokenizing import Tokenizer
from scheduler.preemption import Cause
from tests.end_to_end.chain import chain
from tests.scheduler.helpers import Client

PROMPTS = [
    "The lazy dog",
    "def area(radius):",
    "Once upon a time",
    "import numpy as",
    "Hello",
    "class Point:",
]
SAMPLED = {"temperature": 0.8, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 7}


def ask(client, prompts, first, **fields):
    """Submits all; ids count from `first`."""
    for n, prompt in enumerate(prompts):
        client.submit(first + n, prompt, 80, **SAMPLED, **fields)


async def test_victims_get_the_very_same_tokens(tmp_path):
    tokenizer = Tokenizer.load(MODEL_DIR)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    async with chain("demo", tmp_path, tokenizer) as asked:
        calm = Client(asked.scheduler)
        ask(calm, prompts, 0)
        await calm.until(lambda: len(calm.finished) == len(prompts), seconds=60)
    async with chain("demo", tmp_path, tokenizer, max_num_seqs=3, max_num_batched_tokens=64) as asked:
        client = Client(asked.scheduler)
        ask(client, prompts[:4], 0, tenant="low")
        await client.until(lambda: len(client.tokens[0]) > 10, seconds=60)
        ask(client, prompts[4:], 4, tenant="high", priority=-5)
        await client.until(lambda: len(client.finished) == len(prompts), seconds=60)
        assert client.tokens == calm.tokens
        assert asked.scheduler.preempted_for[Cause.PRIORITY] > 0
        order = list(client.finished)
        assert max(order.index(4), order.index(5)) < min(order.index(1), order.index(2))
        async with asyncio.timeout(10):
            while asked.scheduler.lanes[0].batcher.pool.held:
                await asyncio.sleep(0.001)
        asked.scheduler.lanes[0].batcher.pool.check()
