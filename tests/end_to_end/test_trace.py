"""One trace over gateway, scheduler and worker for each request, received by a real OTLP collector."""

import asyncio
import signal
import time
from collections import Counter

import aiohttp
import pytest

from batchyard.spans import new_trace
from bench.traces import PARENTS as BELOW
from tests.end_to_end.stack import Stack

SLOW_S = 1.5
PARENTS = {"POST /v1/chat/completions": None, **BELOW}  # the root is the client's
SERVICES = {
    "batchyard-gateway": {"POST /v1/chat/completions", "tokenize", "generate"},
    "batchyard-scheduler": {"scheduler.queue", "prefix.match", "scheduler.run"},
    "batchyard-worker": {"prefill", "decode"},
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory, collector):
    """Processes that sample nothing of their own accord."""
    _, endpoint = collector
    otlp = ["--otlp", endpoint]
    gateway = [*otlp, "--trace-sample", "0", "--trace-slow-ms", str(1000 * SLOW_S)]
    folder = tmp_path_factory.mktemp("traced")
    with Stack(folder, worker=otlp, scheduler=otlp, gateway=gateway) as stack:
        yield stack


async def ask(stack, context, text="What is json?", max_tokens=8):
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{stack.base_url}/v1/chat/completions", json=body, headers={"traceparent": context.traceparent}
        ) as reply,
    ):
        assert reply.status == 200, await reply.text()
        await reply.read()


async def spans_of(collected, contexts, count, seconds=20):
    """By trace: the (service, span) of each of `contexts`, once there are `count`."""
    ids = {context.trace_id.to_bytes(16, "big") for context in contexts}
    deadline = time.monotonic() + seconds
    while True:
        found = {trace_id: [] for trace_id in ids}
        for service, span in list(collected.spans):
            if span.trace_id in ids:
                found[span.trace_id].append((service, span))
        if sum(map(len, found.values())) >= count or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)


def check_chain(trace):
    """Every span that there should be, each made by the process that did the work, below its parent."""
    names = {span.span_id: span.name for _, span in trace}
    assert {span.name: names.get(span.parent_span_id) for _, span in trace} == PARENTS
    assert len(trace) == len(PARENTS)
    for service, span in trace:
        assert span.name in SERVICES[service]


def attribute(span, name):
    return next(each.value for each in span.attributes if each.key == name)


async def test_two_hundred_requests_at_once(traced, collector):
    collected, _ = collector
    contexts = [new_trace(sampled=True) for _ in range(200)]
    await asyncio.gather(*(ask(traced, each, f"What is {n}?", 4) for n, each in enumerate(contexts)))
    traces = await spans_of(collected, contexts, 200 * len(PARENTS))
    for context in contexts:
        trace = traces[context.trace_id.to_bytes(16, "big")]
        check_chain(trace)
        (root,) = [span for _, span in trace if span.kind == span.SPAN_KIND_SERVER]
        assert root.parent_span_id == context.span_id.to_bytes(8, "big")
        assert all(
            root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            for _, span in trace
        )


async def test_steps_are_linked_to_what_runs_in_them(traced, collector):
    collected, _ = collector
    context = new_trace(sampled=True)
    await ask(traced, context)
    trace = (await spans_of(collected, [context], len(PARENTS)))[context.trace_id.to_bytes(16, "big")]
    (run,) = [span for _, span in trace if span.name == "scheduler.run"]
    steps = [
        span
        for _, span in collected.spans
        if span.name == "step" and any(link.span_id == run.span_id for link in span.links)
    ]
    assert sum(attribute(span, "batchyard.steps").int_value for span in steps) >= 8
    assert not any(span.parent_span_id for span in steps)


async def test_of_what_is_not_sampled_slow_requests_are_kept(traced, collector):
    collected, _ = collector
    fast, slow = new_trace(sampled=False), new_trace(sampled=False)
    await ask(traced, fast)
    traced.signal("scheduler", signal.SIGSTOP)
    asking = asyncio.create_task(ask(traced, slow))
    await asyncio.sleep(SLOW_S + 0.1)
    traced.signal("scheduler", signal.SIGCONT)
    await asking
    traces = await spans_of(collected, [fast, slow], len(PARENTS))
    check_chain(traces[slow.trace_id.to_bytes(16, "big")])
    assert traces[fast.trace_id.to_bytes(16, "big")] == []


async def test_nothing_of_what_was_said(traced, collector):
    collected, _ = collector
    context = new_trace(sampled=True)
    await ask(traced, context, "xylophone")
    trace = (await spans_of(collected, [context], len(PARENTS)))[context.trace_id.to_bytes(16, "big")]
    assert Counter(service for service, _ in trace) == {name: len(of) for name, of in SERVICES.items()}
    assert "xylophone" not in str(collected.spans)
