"""Outcomes and runs made by hand."""

from batchyard.loadtest.lag import ClientHealth
from batchyard.loadtest.outcomes import Kind, Outcome
from batchyard.loadtest.results import Point, Result, Run
from batchyard.loadtest.statistics import Objectives

HEALTHY = ClientHealth(0.1, 0.0, 0.1, 0.2)


def outcome(number=0, sent=0.0, ttft=0.1, gaps=(0.02,) * 4, **changes):
    stamps = [sent + ttft]
    for gap in gaps:
        stamps.append(stamps[-1] + gap)
    fields = {
        "number": number,
        "kind": Kind.OK,
        "due": sent,
        "sent": sent,
        "end": stamps[-1],
        "asked": len(stamps),
        "input_tokens": 10,
        "output_tokens": len(stamps),
        "stamps": stamps,
        "pinned": True,
        "status": 200,
    }
    return Outcome(**(fields | changes))


def lost(number=0, kind=Kind.FAILED, sent=0.0, end=0.1, **changes):
    return outcome(number, sent, kind=kind, end=end, stamps=[], output_tokens=0, **changes)


def run(outcomes, value=1.0, kind="concurrency", objectives=None, stopped=False):
    return Run(
        Point(kind, value),
        "2026-01-01T00:00:00+00:00",
        objectives or Objectives(),
        HEALTHY,
        stopped,
        outcomes,
    )


def result(runs, name="made", **workload):
    return Result(name, "http://127.0.0.1:1", "made", workload, runs[0].objectives, runs)
