"""What is measured of the service, what vLLM 0.25.1 gave on one H200, and what we want of it.

vLLM's figures: torch 2.11.0+cu130, FLASH_ATTN backend, torch.compile and full CUDA graphs, prefix caching,
`--max-model-len 34000 --gpu-memory-utilization 0.9`, dummy weights; measured 2026-11-20 over its own HTTP
server with the workloads of `bench.workloads`. A row without goals is measured only when it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

VLLM = "vLLM 0.25.1"


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure in a load test's report: `path` leads to it."""

    name: str
    path: tuple[str, ...]
    unit: str = ""
    decimals: int = 2
    less_is_better: bool = False

    def read(self, report: Mapping[str, Any]) -> float | None:
        """The figure, None where the report has none."""
        value: Any = report
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) else None

    def ratio(self, ours: float, theirs: float) -> float:
        """Above 1 where ours is better."""
        return theirs / ours if self.less_is_better else ours / theirs


TPOT = Metric("TPOT", ("tpot_ms", "p50"), "ms", 2, less_is_better=True)
TTFT_P50 = Metric("TTFT p50", ("ttft_ms", "p50"), "ms", 1, less_is_better=True)
TTFT_P99 = Metric("TTFT p99", ("ttft_ms", "p99"), "ms", 1, less_is_better=True)
ITL_P99 = Metric("ITL p99", ("itl_ms", "p99"), "ms", 1, less_is_better=True)
OUTPUT = Metric("out tok/s", ("output_tok_per_s",), decimals=0)
INPUT = Metric("in tok/s", ("input_tok_per_s",), decimals=0)
REQUESTS = Metric("req/s", ("req_per_s",), decimals=1)
SECONDS = Metric("seconds in all", ("seconds",), "s", 1, less_is_better=True)
READY = Metric("start to ready", ("ready_s",), "s", 1, less_is_better=True)


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric with vLLM's figure and our goal, where there is one."""

    metric: Metric
    theirs: float
    goal: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """A load test: `concurrency` requests at once, or `rate` a second.

    Prompts of one seed begin alike, also in different workloads: rows that would find much of each other's
    prompts in the prefix cache have seeds of their own.
    """

    workload: str
    requests: int
    concurrency: int = 0
    rate: int = 0
    seed: int = 0

    def scaled(self, factor: float) -> "Load":
        """With so much less to do, for small machines."""
        return replace(
            self,
            requests=max(2, int(self.requests * factor)),
            concurrency=self.concurrency and max(1, int(self.concurrency * factor)),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table; without a load, it is about the start."""

    model: str
    name: str
    load: Load | None
    measures: tuple[Measure, ...]

    @property
    def key(self) -> str:
        """How it is asked for."""
        return f"{self.model}:{self.name}"

    @property
    def has_goal(self) -> bool:
        return any(measure.goal is not None for measure in self.measures)


def _decode(model: str, concurrency: int, requests: int, *measures: Measure) -> Row:
    return Row(model, f"decode-{concurrency}", Load("decode", requests, concurrency), measures)


def _mixed(model: str, concurrency: int, seed: int, *measures: Measure) -> Row:
    load = Load("mixed", 2 * concurrency, concurrency, seed=seed)
    return Row(model, f"mixed-{concurrency}", load, measures)


def _chat(model: str, rate: int, seed: int, *measures: Measure) -> Row:
    return Row(model, f"chat-{rate}", Load("chat", 30 * rate, rate=rate, seed=seed), measures)


ROWS: tuple[Row, ...] = (
    Row("llama-8b", "start", None, (Measure(READY, 62, 25),)),
    _decode("llama-8b", 1, 2, Measure(TPOT, 4.89, 4.1)),
    _decode("llama-8b", 8, 16, Measure(TPOT, 5.03)),
    _decode("llama-8b", 32, 64, Measure(TPOT, 5.59, 4.8)),
    _decode("llama-8b", 128, 256, Measure(TPOT, 8.18, 7.0)),
    _mixed("llama-8b", 256, 0, Measure(OUTPUT, 10_055, 12_000)),
    _mixed("llama-8b", 512, 1, Measure(OUTPUT, 12_761, 14_500)),
    Row("llama-8b", "prefill", Load("prefill", 64, 16), (Measure(INPUT, 37_585, 38_000),)),
    Row("llama-8b", "long", Load("long", 16, 16, seed=1), (Measure(SECONDS, 24.1, 23),)),
    _chat("llama-8b", 16, 1, Measure(TTFT_P50, 20.4), Measure(TTFT_P99, 57), Measure(ITL_P99, 12.4)),
    _chat("llama-8b", 32, 0, Measure(TTFT_P99, 51, 45), Measure(ITL_P99, 14.1, 12)),
    Row("llama-8b", "faq", Load("faq", 512, 128, seed=2), (Measure(REQUESTS, 68.9, 90),)),
    Row("llama-8b", "tenants", Load("tenants", 1024, 128, seed=3), (Measure(REQUESTS, 94.3, 120),)),
    _decode("qwen3-0.6b", 1, 4, Measure(TPOT, 1.63, 0.9)),
    _decode("qwen3-0.6b", 32, 64, Measure(TPOT, 2.02)),
    _decode("qwen3-0.6b", 128, 256, Measure(TPOT, 3.60, 2.5)),
    _mixed("qwen3-0.6b", 256, 0, Measure(OUTPUT, 24_000, 30_000)),
    _chat("qwen3-0.6b", 32, 0, Measure(TTFT_P50, 11.8), Measure(TTFT_P99, 27), Measure(ITL_P99, 5.8)),
)
