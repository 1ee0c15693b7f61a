"""One trace over gateway, scheduler and worker for each request, received by a real OTLP collector."""

import asyncio

import aiohttp

from tests.end_to_end.stack import Stack


def attribute(span, name):
    return next(each.value for each in span.attributes if each.key == name)


async def test_a_request_is_one_trace_over_all_processes(tmp_path, collector):
    collected, endpoint = collector
    otlp_flag = ["--otlp", endpoint]
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    stack = Stack(tmp_path, worker=otlp_flag, scheduler=otlp_flag, gateway=otlp_flag)
    await asyncio.to_thread(stack.__enter__)
    try:
        body = {"model": "demo", "messages": [{"role": "user", "content": "What is json?"}], "max_tokens": 8}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{stack.base_url}/v1/chat/completions", json=body, headers=headers) as reply,
        ):
            assert reply.status == 200
        await stack.idle()
    finally:
        await asyncio.to_thread(stack.__exit__)  # which flushes what is left
    ours = [(service, span) for service, span in collected.spans if span.trace_id.hex() == trace_id]
    by_name = {span.name: (service, span) for service, span in ours}
    assert {name: service for name, (service, _) in by_name.items()} == {
        "POST /v1/chat/completions": "batchyard-gateway",
        "tokenize": "batchyard-gateway",
        "generate": "batchyard-gateway",
        "scheduler.queue": "batchyard-scheduler",
        "prefix.match": "batchyard-scheduler",
        "scheduler.run": "batchyard-scheduler",
        "prefill": "batchyard-worker",
        "decode": "batchyard-worker",
    }
    root = by_name["POST /v1/chat/completions"][1]
    ids = {span.span_id: name for name, (_, span) in by_name.items()}
    assert {name: ids.get(span.parent_span_id) for name, (_, span) in by_name.items()} == {
        "POST /v1/chat/completions": None,  # the client's
        "tokenize": "POST /v1/chat/completions",
        "generate": "POST /v1/chat/completions",
        "scheduler.queue": "generate",
        "prefix.match": "generate",
        "scheduler.run": "generate",
        "prefill": "scheduler.run",
        "decode": "scheduler.run",
    }
    assert all(
        root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano for _, span in ours
    )
    steps = [span for _, span in collected.spans if span.name == "step"]
    assert sum(attribute(span, "batchyard.steps").int_value for span in steps) >= 8
    assert all(link.trace_id.hex() == trace_id for span in steps for link in span.links)
    assert "json" not in str(collected.spans)
