"""Several rates or concurrencies, and the knee among them.

The knee is the point with the most requests a second within the objectives, where there are any: nearly all
of its requests (95%) must keep them. Without objectives it is where throughput over latency is highest:
Kleinrock's power ("Power and deterministic rules of thumb for probabilistic problems in computer
communications", ICC 1979).
"""

from collections.abc import Awaitable, Callable, Sequence

from batchyard.loadtest.results import Point, Run

KEEPS = 0.95  # share of requests
_GAIN = 1.05  # of throughput, for which doubling the concurrency is worth it
_MOST = 4096  # requests at once

Measure = Callable[[Point], Awaitable[Run]]


def find_knee(runs: Sequence[Run]) -> Run | None:
    """The knee of a sweep, None where no run is fit to be one."""
    answered = [run for run in runs if run.summary.ok and not run.stopped]
    if any(run.objectives for run in answered):
        return max(filter(keeps, answered), key=lambda run: run.summary.good_per_s or 0.0, default=None)
    return max(answered, key=power, default=None)


def keeps(run: Run) -> bool:
    """Whether nearly all requests kept the objectives; refused and failed ones did not."""
    return run.summary.good is not None and run.summary.good >= KEEPS


def power(run: Run) -> float:
    """Throughput over mean latency; requests that were not answered take from it."""
    summary = run.summary
    if not summary.e2e_ms:
        return 0.0
    return summary.output_tok_per_s / summary.e2e_ms.mean * (summary.ok / summary.requests)


async def explore(measure: Measure) -> list[Run]:
    """Doubles the concurrency until that gains nothing, then looks on both sides of the best.

    Ends early where a run is stopped, or hardly anything is answered.
    """
    runs: list[Run] = []
    for concurrency in (1 << n for n in range(_MOST.bit_length())):
        runs.append(await measure(Point("concurrency", concurrency)))
        if _is_enough(runs):
            break
    tried = {run.point.value for run in runs}
    knee = find_knee(runs)
    if knee and not runs[-1].stopped:
        for value in (round(knee.point.value * 0.75), round(knee.point.value * 1.5)):
            if value not in tried and value > 0:
                tried.add(value)
                run = await measure(Point("concurrency", value))
                runs.append(run)
                if run.stopped:
                    break
    return sorted(runs, key=lambda run: run.point.value)


def _is_enough(runs: Sequence[Run]) -> bool:
    last = runs[-1]
    if last.stopped or last.summary.ok < last.summary.requests / 2:
        return True
    if last.objectives and not keeps(last):
        return True
    return len(runs) > 1 and last.summary.output_tok_per_s < _GAIN * runs[-2].summary.output_tok_per_s
