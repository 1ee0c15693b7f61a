"""Clients that go away midway leave nothing behind."""

import asyncio

import aiohttp

PROMPT = "import "


async def read(session, server, number, events):
    """Reads one stream; hangs up after `events` events unless that is None. Returns how many came."""
    body = {
        "model": "demo",
        "prompt": f"{PROMPT}{number}",
        "max_tokens": 150,
        "ignore_eos": True,
        "stream": True,
        "seed": number,
    }
    seen = 0
    async with session.post(f"{server.base_url}/v1/completions", json=body) as reply:
        assert reply.status == 200
        async for line in reply.content:
            seen += line.startswith(b"data: {")
            if seen == events:
                break
    return seen


async def test_64_streams_of_which_20_hang_up(server):
    before = await server.idle()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with asyncio.timeout(120), aiohttp.ClientSession(connector=connector) as session:
        hang_up = {n: 5 + n for n in range(0, 60, 3)}
        seen = await asyncio.gather(*(read(session, server, n, hang_up.get(n)) for n in range(64)))
    assert len(hang_up) == 20
    assert all(seen[n] == events for n, events in hang_up.items())
    assert all(count > 100 for n, count in enumerate(seen) if n not in hang_up)
    after = await server.idle()
    (worker,) = after.workers
    assert worker.free_blocks + worker.cached_blocks == before.workers[0].num_blocks
