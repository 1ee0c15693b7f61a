"""What Prometheus is told."""

import os
import re
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchyard.errors import Overloaded
from batchyard.metrics.bounded_names import MOST_TENANTS
from gateway.metrics import ALIASES, Metrics
from tests.gateway.api_fakes import FakeGenerator, in_process, make_app

BODY = {"model": "demo", "prompt": "hi", "n": 2}


def samples(text: str) -> dict[tuple[str, str], float]:
    """Value by name and by the labels that are not buckets."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_one_request():
    async with in_process(make_app()) as client:
        await client.post("/v1/completions", json=BODY)
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    told = samples(response.text)
    route = "/v1/completions"
    assert told["batchyard_gateway_requests_total", f"{route},200,"] == 1
    assert told["batchyard_gateway_requests_in_flight", ""] == 0
    assert told["batchyard_gateway_prompt_tokens_total", ""] == 2
    assert told["batchyard_gateway_completion_tokens_total", ""] == 8
    assert told["batchyard_gateway_time_to_first_token_seconds_count", ""] == 1
    assert told["batchyard_gateway_inter_token_latency_seconds_count", ""] == 6
    assert told["batchyard_gateway_request_duration_seconds_count", route] == 1


async def test_what_clients_write_is_no_label():
    async with in_process(make_app()) as client:
        for path in ("/v1/secret", "/secret", "/v1/models/secret"):
            await client.get(path)
        text = (await client.get("/metrics")).text
    assert "secret" not in text
    assert samples(text)["batchyard_gateway_requests_total", "unknown,404,"] == 1


async def test_a_refused_request_has_no_tokens():
    metrics = Metrics()
    app = make_app(FakeGenerator(fails_with=Overloaded("full")), metrics=metrics)
    async with in_process(app) as client:
        await client.post("/v1/completions", json=BODY)
    told = samples(metrics.exposition().decode())
    assert told["batchyard_gateway_requests_total", "/v1/completions,429,"] == 1
    assert ("batchyard_gateway_prompt_tokens_total", "") not in told
    assert told["batchyard_gateway_time_to_first_token_seconds_count", ""] == 0


COUNT_ONE = """
from gateway.metrics import ALIASES, Metrics
metrics = Metrics()
metrics.requests.labels("/v1/completions", "200", "").inc()
metrics.in_flight.inc()
print(metrics.exposition().decode())
"""


def test_processes_that_share_a_port_answer_for_each_other(tmp_path):
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    outputs = [
        subprocess.run([sys.executable, "-c", COUNT_ONE], env=env, check=True, capture_output=True, text=True)
        for _ in range(2)
    ]
    told = samples(outputs[1].stdout)
    assert told["batchyard_gateway_requests_total", "/v1/completions,200,"] == 2
    assert told["batchyard_gateway_requests_in_flight", ""] == 2


async def test_one_metric_can_be_asked_for():
    async with in_process(make_app()) as client:
        await client.post("/v1/completions", json=BODY)
        for name, others in (
            ("batchyard_gateway_requests_total", "batchyard_gateway_answers_total"),
            ("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
        ):
            text = (await client.get("/metrics", params={"name[]": name})).text
            assert name in text
            assert others not in text
        assert (await client.get("/metrics", params={"name[]": "unknown"})).text == ""


async def test_times_and_sizes_of_answers():
    async with in_process(make_app()) as client:
        await client.post("/v1/completions", json=BODY | {"max_tokens": 7})
        told = samples((await client.get("/metrics")).text)
    ours = "batchyard_gateway"
    assert told[f"{ours}_time_per_output_token_seconds_count", ""] == 2
    assert told[f"{ours}_time_to_last_token_seconds_count", ""] == 1
    first, last = (told[f"{ours}_time_to_{which}_token_seconds_sum", ""] for which in ("first", "last"))
    assert 0 < first <= last
    assert told[f"{ours}_answer_tokens_sum", ""] == 8
    assert told[f"{ours}_request_prompt_tokens_sum", ""] == 2
    assert told[f"{ours}_request_answers_sum", ""] == 2
    assert told[f"{ours}_request_max_tokens_sum", ""] == 7
    assert sum(value for (name, _), value in told.items() if name == f"{ours}_answers_total") == 2


async def test_vllms_names_say_the_same():
    metrics = Metrics("demo")
    async with in_process(make_app(metrics=metrics)) as client:
        await client.post("/v1/completions", json=BODY)
    told = samples(metrics.exposition().decode())
    for alias in ALIASES:
        pairs = [
            (name.removeprefix(alias.source), value)
            for (name, _), value in told.items()
            if re.fullmatch(f"{alias.source}(_total|_count|_sum)?", name)
        ]
        assert pairs, alias
        for suffix in {suffix for suffix, _ in pairs}:
            ours = sum(value for end, value in pairs if end == suffix)
            theirs = sum(value for (name, _), value in told.items() if name == alias.name + suffix)
            assert theirs == pytest.approx(ours)
    assert told["vllm:generation_tokens_total", "demo"] == 8


async def test_a_thousand_tenants_make_no_thousand_series():
    metrics = Metrics()
    for number in range(1000):
        metrics.requests.labels("/v1/completions", "200", metrics.tenants.label(f"t{number}")).inc()
    told = samples(metrics.exposition().decode())
    counts = [value for (name, _), value in told.items() if name == "batchyard_gateway_requests_total"]
    assert (len(counts), sum(counts)) == (MOST_TENANTS + 1, 1000)
