"""The account of time, of several answers and as it is told."""

from gateway.timing import combined, told
from protos.scheduling_pb2 import Timing

FIRST = Timing(
    queued_ms=3,
    requeued_ms=1,
    prefill_ms=10,
    decode_ms=50,
    device_tokens=16,
    chunks=2,
    retries=1,
    worker_id="b",
)
SECOND = Timing(
    queued_ms=5, prefill_ms=2, decode_ms=60, host_tokens=32, chunks=1, preemptions=2, worker_id="a"
)


def test_of_several_answers_the_longest_phases_and_all_counts():
    assert combined([FIRST, SECOND]) == Timing(
        queued_ms=5,
        requeued_ms=1,
        prefill_ms=10,
        decode_ms=60,
        device_tokens=16,
        host_tokens=32,
        chunks=3,
        preemptions=2,
        retries=1,
        worker_id="a,b",
    )
    assert combined([FIRST]) == FIRST


def test_phases_are_always_told_and_the_rest_where_there_is_any():
    assert told(Timing(queued_ms=0.123, chunks=1, worker_id="w")) == {
        "queued_ms": 0.12,
        "prefill_ms": 0.0,
        "decode_ms": 0.0,
        "chunks": 1,
        "worker": "w",
    }
    assert told(None) == {}
