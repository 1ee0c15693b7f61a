"""The scheduler's account of where the time of a request went, for all its answers and as it is told."""

from collections.abc import Sequence

from protos.scheduling_pb2 import Timing


def combined(timings: Sequence[Timing]) -> Timing:
    """Of some answers: the longest of each phase, for they ran side by side, and all that was counted.

    Workers' names are joined by commas.
    """
    return Timing(
        queued_ms=max(each.queued_ms for each in timings),
        requeued_ms=max(each.requeued_ms for each in timings),
        prefill_ms=max(each.prefill_ms for each in timings),
        decode_ms=max(each.decode_ms for each in timings),
        device_tokens=sum(each.device_tokens for each in timings),
        host_tokens=sum(each.host_tokens for each in timings),
        chunks=sum(each.chunks for each in timings),
        preemptions=sum(each.preemptions for each in timings),
        retries=sum(each.retries for each in timings),
        migrations=sum(each.migrations for each in timings),
        worker_id=",".join(sorted({each.worker_id for each in timings})),
    )


def told(timing: Timing | None) -> dict[str, float | int | str]:
    """By name, for logs and traces: every phase, and what there is of the rest. Nothing of nothing."""
    if timing is None:
        return {}
    phases: dict[str, float | int | str] = {
        "queued_ms": round(timing.queued_ms, 2),
        "prefill_ms": round(timing.prefill_ms, 2),
        "decode_ms": round(timing.decode_ms, 2),
    }
    rest: dict[str, float | int | str] = {
        "requeued_ms": round(timing.requeued_ms, 2),
        "device_tokens": timing.device_tokens,
        "host_tokens": timing.host_tokens,
        "chunks": timing.chunks,
        "preemptions": timing.preemptions,
        "retries": timing.retries,
        "migrations": timing.migrations,
        "worker": timing.worker_id,
    }
    return phases | {name: value for name, value in rest.items() if value}
