"""Plays a workload at the points that are asked for."""

import asyncio
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from batchyard.errors import BadTarget
from batchyard.loadtest.arrivals import arrival_times
from batchyard.loadtest.calls import Encoder, Job
from batchyard.loadtest.client import Client, parse_url
from batchyard.loadtest.options import Options
from batchyard.loadtest.outcomes import Kind, Outcome
from batchyard.loadtest.preflight import check_target
from batchyard.loadtest.progress import shown
from batchyard.loadtest.results import Point, Result, Run
from batchyard.loadtest.runner import Limits, Runner
from batchyard.loadtest.sweep import Measure, explore
from batchyard.loadtest.table import show_run

_ENDLESS = 1 << 20  # sessions: more than any time is enough for
_NEXT_SEED = 7919  # from one point of a sweep to the next, so that no prompt is in the server's cache already


class Bench:
    """A load test of one server."""

    def __init__(self, options: Options, client: Client, model: str, stop: asyncio.Event) -> None:
        self._options, self._client, self._stop = options, client, stop
        self._encoder = Encoder(model, options.pinned, options.body)
        self._points = 0

    async def warm_up(self) -> None:
        """Requests that share nothing with what is measured. Raises BadTarget where none is answered."""
        options = self._options
        sessions = options.workload.strangers(options.warmup, options.seed)
        jobs = [self._encoder.job(n, session, None) for n, session in enumerate(sessions)]
        if not jobs:
            return
        runner = Runner(self._client, self._encoder, Limits(), self._stop)
        record = await runner.closed(jobs, len(jobs), len(jobs))
        if not record.stopped:
            check_answered(record.outcomes, options.target.url)

    async def measure(self, point: Point) -> Run:
        """One run."""
        options = self._options
        count, started = options.count(point), datetime.now(UTC).isoformat(timespec="seconds")
        seed = options.seed + _NEXT_SEED * self._points
        self._points += 1
        runner = Runner(self._client, self._encoder, Limits(options.retries, options.duration_s), self._stop)
        async with shown(runner, point, sys.stderr):
            if point.kind == "concurrency":
                jobs = self._jobs(count or _ENDLESS, seed)
                # What time does not bound is encoded before the clock starts.
                known = list(jobs) if count else None
                requests = sum(1 + len(job.turns) for job in known) if known else None
                record = await runner.closed(known or jobs, int(point.value), requests)
            else:
                record = await runner.open(list(self._jobs(count or 0, seed, point)))
        return Run(point, started, options.objectives, record.health, record.stopped, record.outcomes)

    def _jobs(self, count: int, seed: int, point: Point | None = None) -> Iterator[Job]:
        """So many sessions; with `point` each has its time."""
        options = self._options
        rate = point.value if point and point.kind == "rate" else None
        times = arrival_times(rate, options.burstiness, count, seed) if rate else None
        for number, session in enumerate(options.workload.sessions(count, seed)):
            due = times[number] if times else session.at if point else None
            yield self._encoder.job(number, session, due)


async def run(options: Options, stop: asyncio.Event, printed: bool = True) -> Result:
    """The whole load test. Prints each run when it is over, with `printed`. Raises BadTarget."""
    target = options.target
    client = Client(parse_url(target.url, target.ca_file), target.api_key, target.timeout_s)
    try:
        model = await check_target(client, target.url, target.model)
        bench = Bench(options, client, model, stop)
        await bench.warm_up()
        runs = await _sweep(options, _printing(bench) if printed else bench.measure, stop)
    finally:
        client.close()
    name = options.name or model
    return Result(name, target.url, model, options.asked, options.objectives, runs)


async def _sweep(options: Options, measure: Measure, stop: asyncio.Event) -> list[Run]:
    if not options.points:
        return await explore(measure)
    return [await measure(point) for point in options.points if not stop.is_set()]


def _printing(bench: Bench) -> Measure:
    async def measure(point: Point) -> Run:
        run = await bench.measure(point)
        print(*show_run(run), "", sep="\n", flush=True)
        return run

    return measure


def check_answered(outcomes: list[Outcome], url: str) -> None:
    """Raises BadTarget, with what the server said, where not one request was answered."""
    problems = [outcome.error for outcome in outcomes if outcome.kind in (Kind.FAILED, Kind.REFUSED)]
    if problems and len(problems) == len(outcomes):
        raise BadTarget(f"{url} answered none of {len(outcomes)} requests: {problems[0]}")
