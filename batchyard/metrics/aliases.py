"""Metrics under a second name: vLLM's, where it means the same, so that its dashboards and autoscalers work.

Nothing is counted twice. An alias is made from the samples of the metric it stands for, when Prometheus asks:
those that match `where`, added up over all labels but `keep`, with the model's name as vLLM labels it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample


@dataclass(frozen=True)
class Alias:
    """`name` for `source`, both without a counter's `_total`.

    where   labels that a sample must have, with their values
    keep    labels that are kept, and what they are called in the alias
    """

    name: str
    source: str
    where: Mapping[str, str] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)

    def of(self, metric: Metric, model_name: str) -> Metric:
        """The same facts as `metric`, which is the source."""
        alias = Metric(self.name, metric.documentation, metric.type)
        values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        for sample in metric.samples:
            if all(sample.labels.get(label) == value for label, value in self.where.items()):
                labels = tuple(
                    (self.keep.get(label, label), value)
                    for label, value in sample.labels.items()
                    if label in self.keep or label == "le"
                )
                values[sample.name.removeprefix(metric.name), labels] += sample.value
        alias.samples = [
            Sample(self.name + suffix, {"model_name": model_name, **dict(labels)}, value)
            for (suffix, labels), value in values.items()
        ]
        return alias


class WithAliases(Collector):
    """What `inner` collects, and each of `aliases` whose source is among it."""

    def __init__(self, inner: Collector, aliases: Sequence[Alias], model_name: Callable[[], str]) -> None:
        """`model_name` is asked each time: not every process knows it from the start."""
        self._inner = inner
        self._model_name = model_name
        self._by_source: dict[str, list[Alias]] = {}
        for alias in aliases:
            self._by_source.setdefault(alias.source, []).append(alias)

    def collect(self) -> Iterator[Metric]:
        """Metrics, each followed by its aliases."""
        model_name = self._model_name()
        for metric in self._inner.collect():
            yield metric
            for alias in self._by_source.get(metric.name, ()):
                yield alias.of(metric, model_name)


class Chosen(Collector):
    """Those metrics of `inner` that Prometheus names: `/metrics?name[]=…`."""

    def __init__(self, inner: Collector, names: Iterable[str]) -> None:
        """`names` are those of metrics or of single series; no name at all stands for everything."""
        self._inner = inner
        self._names = frozenset(names)

    def collect(self) -> Iterator[Metric]:
        """What was asked for."""
        for metric in self._inner.collect():
            if not self._names or not self._names.isdisjoint(_names_of(metric)):
                yield metric


def _names_of(metric: Metric) -> set[str]:
    return {metric.name, *(sample.name for sample in metric.samples)}
