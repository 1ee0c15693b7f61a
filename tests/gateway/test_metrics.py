"""What Prometheus is told."""

import os
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from batchyard.errors import Overloaded
from gateway.metrics import Metrics
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
from gateway.metrics import Metrics
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
