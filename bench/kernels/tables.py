"""The tables, as Markdown."""

from collections.abc import Iterator, Mapping

from bench.kernels.cases import Bench, Case, Topic
from bench.kernels.timing import Limits, Timer, time_rival

_NOTHING = "-"


def rate(work: int, microseconds: float) -> float:
    """TB/s of bytes, TFLOP/s of FLOP."""
    return work / microseconds / 1e6


def heading(topic: Topic) -> list[str]:
    """The first two lines of a table."""
    columns = [*topic.columns, "µs", topic.unit, "of limit", *topic.rivals]
    if topic.rivals:
        columns.append("speedup")
    return [_line(columns), "|" + "--:|" * len(columns)]


def line(
    topic: Topic, case: Case, microseconds: float, rivals: Mapping[str, float | None], limits: Limits
) -> str:
    """One case: ours, and `rivals` in microseconds, those that there are. The speedup is over the fastest."""
    ours = rate(case.work, microseconds)
    cells = [*case.labels, f"{microseconds:.1f}", _rounded(ours), f"{ours / limits.of(topic.unit):.0%}"]
    found = {name: time for name, time in rivals.items() if time is not None}
    cells += [_rounded(rate(case.work, found[name])) if name in found else _NOTHING for name in topic.rivals]
    if topic.rivals:
        cells.append(f"{min(found.values()) / microseconds:.2f}" if found else _NOTHING)
    return _line(cells)


def table(topic: Topic, bench: Bench, timer: Timer, limits: Limits) -> Iterator[str]:
    """The lines of a table, each once it is measured."""
    yield from heading(topic)
    for case in topic.cases(bench):
        microseconds = timer(case.ours)
        rivals = {name: time_rival(timer, name, launches) for name, launches in case.rivals.items()}
        yield line(topic, case, microseconds, rivals, limits)


def _rounded(figure: float) -> str:
    """Three digits, as far as they are behind the point."""
    return f"{figure:.2f}" if figure < 10 else f"{figure:.0f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
