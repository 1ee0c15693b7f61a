"""Gateways that share a port: sockets in one folder, journals that are read as one."""

import asyncio
import socket
from contextlib import AsyncExitStack

import pytest

from gateway.console.journal import Journal, RequestRecord, Segment
from gateway.console.latencies import percentiles
from gateway.console.peers import Peers


def record(name: str, arrived: float = 1000.0) -> RequestRecord:
    return RequestRecord(
        id=name,
        tenant="t",
        model="demo",
        route="/v1/completions",
        status=200,
        error=None,
        arrived=arrived,
        prompt_tokens=3,
        completion_tokens=4,
        cached_tokens=0,
        ttft=1.5,
        duration=10.0,
        segments=(Segment("wait", 0.0, 1.5), Segment("decode", 1.5, 8.5)),
        timing={"queued_ms": 0.5, "chunks": 1, "worker": "w"},
        trace_id="",
    )


class Other(Peers):
    """A gateway in another process, as far as its socket tells."""

    def _socket(self, folder):
        return folder / "gw-1.sock"


async def test_each_tells_what_all_remember(tmp_path):
    mine, other = Peers(Journal(), tmp_path), Other(Journal(), tmp_path)
    async with mine.served(), other.served():
        mine.journal.answered(record("first", 1.0))
        other.journal.answered(record("second", 2.0))
        mine.journal.answered(record("third", 3.0))
        other.journal.first_token("t", 0.5, 0.0)
        for peers in (mine, other):
            remembered, heard = await peers.remembered()
            assert heard == 2
            assert [each.id for each in remembered.requests] == ["third", "second", "first"]
            assert remembered.requests[1] == record("second", 2.0)


async def test_latencies_are_those_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 7.0)
    mine, other = Peers(Journal(), tmp_path), Other(Journal(), tmp_path)
    mine.journal.first_token("a", 0.001, 7.0)
    other.journal.first_token("b", 1.0, 7.0)
    other.journal.next_token("b", 0.1, 7.0)
    async with mine.served(), other.served():
        remembered, _ = await mine.remembered()
    assert percentiles(remembered.ttft, None).count == 2
    assert percentiles(remembered.itl, "b").count == 1


async def test_others_are_asked_once_a_second_at_most(tmp_path):
    mine, asked = Peers(Journal(), tmp_path), []

    async def tell(reader, writer):
        asked.append(1)
        writer.close()

    server = await asyncio.start_unix_server(tell, tmp_path / "gw-1.sock")
    async with server:
        await asyncio.gather(*(mine.remembered() for _ in range(20)))
    assert len(asked) == 1


@pytest.mark.parametrize("kind", ["gone", "talks nonsense", "stands still"])
async def test_one_that_does_not_tell_is_left_out(tmp_path, kind):
    mine = Peers(Journal(), tmp_path)
    mine.journal.answered(record("mine"))
    path = tmp_path / "gw-1.sock"
    async with AsyncExitStack() as stack:
        if kind == "gone":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))
        else:
            release = asyncio.Event()

            async def tell(reader, writer):
                writer.write(b"{nonsense")
                if kind == "stands still":
                    await release.wait()
                writer.close()

            await stack.enter_async_context(await asyncio.start_unix_server(tell, path))
            stack.callback(release.set)
        async with asyncio.timeout(5):
            remembered, heard = await mine.remembered()
    assert (heard, [each.id for each in remembered.requests]) == (1, ["mine"])


async def test_a_gateway_alone_has_no_socket(tmp_path):
    peers = Peers(Journal())
    async with peers.served():
        peers.journal.answered(record("mine"))
        remembered, heard = await peers.remembered()
    assert (heard, len(remembered.requests)) == (1, 1)


def test_a_hundred_requests_are_kept():
    journal = Journal()
    for number in range(150):
        journal.answered(record(str(number)))
    assert [each.id for each in journal.remembered().requests] == [str(n) for n in range(149, 49, -1)]
