from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from batchyard.metrics.aliases import Alias, Chosen, WithAliases


def told(collector):
    return generate_latest(collector).decode().splitlines()


def test_an_alias_is_the_same_fact_under_another_name():
    registry = CollectorRegistry()
    tokens = Counter("ours_tokens", "Tokens.", ["tenant"], registry=registry)
    alias = WithAliases(registry, [Alias("vllm:generation_tokens", "ours_tokens")], lambda: "demo")
    tokens.labels("a").inc(3)
    tokens.labels("b").inc(4)
    lines = told(alias)
    assert 'ours_tokens_total{tenant="a"} 3.0' in lines
    assert 'vllm:generation_tokens_total{model_name="demo"} 7.0' in lines
    tokens.labels("a").inc()
    assert 'vllm:generation_tokens_total{model_name="demo"} 8.0' in told(alias)


def test_of_some_samples_by_some_labels():
    registry = CollectorRegistry()
    gauge = Gauge("ours", "x", ["state", "worker"], registry=registry)
    for number, state in enumerate(("on", "off")):
        for worker in "ab":
            gauge.labels(state, worker).set(number + 1)
    alias = Alias("vllm:off", "ours", where={"state": "off"}, keep={"worker": "engine"})
    lines = [line for line in told(WithAliases(registry, [alias], lambda: "m")) if "vllm:off{" in line]
    assert lines == [
        'vllm:off{engine="a",model_name="m"} 2.0',
        'vllm:off{engine="b",model_name="m"} 2.0',
    ]


def test_histograms_are_added_up_bucket_by_bucket():
    registry = CollectorRegistry()
    seconds = Histogram("ours_seconds", "x", ["worker"], buckets=(1, 2), registry=registry)
    seconds.labels("a").observe(0.5)
    seconds.labels("b").observe(1.5)
    lines = told(WithAliases(registry, [Alias("vllm:s_total", "ours_seconds")], lambda: "m"))
    assert "# TYPE vllm:s_total histogram" in lines
    assert 'vllm:s_total_bucket{le="1.0",model_name="m"} 1.0' in lines
    assert 'vllm:s_total_bucket{le="+Inf",model_name="m"} 2.0' in lines
    assert 'vllm:s_total_count{model_name="m"} 2.0' in lines
    assert 'vllm:s_total_sum{model_name="m"} 2.0' in lines


def test_only_what_is_named():
    registry = CollectorRegistry()
    Gauge("a", "x", registry=registry)
    Counter("b", "x", registry=registry)
    for names, found in (((), {"a", "b"}), (["a"], {"a"}), (["b_total"], {"b"}), (["c"], set())):
        assert {metric.name for metric in Chosen(registry, names).collect()} == found
