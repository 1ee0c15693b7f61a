"""The manifests by which Kubernetes follows `batchyard_workers_wanted`."""

import re
from pathlib import Path

import pytest
import yaml

from scheduler.metrics import SchedulerCollector
from tests.scheduler.helpers import held_lease, make_scheduler

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def read(name):
    (document,) = yaml.safe_load_all((FOLDER / name).read_text())
    return document


def known_names():
    class Demand:
        wanted = 1.0

    collector = SchedulerCollector(make_scheduler(), held_lease(), Demand())
    return {metric.name for metric in collector.collect()}


def test_keda_asks_for_a_metric_that_there_is():
    document = read("keda-scaledobject.yml")
    assert (document["apiVersion"], document["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = document["spec"]
    (trigger,) = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    metadata = trigger["metadata"]
    assert set(re.findall(r"batchyard_\w+", metadata["query"])) <= known_names()
    assert metadata["threshold"] == "1"  # KEDA wants text
    assert metadata["serverAddress"].startswith("http")
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]


def test_the_hpa_asks_for_the_same():
    document = read("hpa.yml")
    assert (document["apiVersion"], document["kind"]) == ("autoscaling/v2", "HorizontalPodAutoscaler")
    (metric,) = document["spec"]["metrics"]
    assert metric["type"] == "External"
    assert metric["external"]["metric"]["name"] in known_names()
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert 1 <= document["spec"]["minReplicas"] < document["spec"]["maxReplicas"]


def behaviours():
    keda = read("keda-scaledobject.yml")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    return [keda, read("hpa.yml")["spec"]["behavior"]]


def test_both_scale_the_same_workers_in_the_same_way():
    keda, hpa = behaviours()
    assert keda == hpa
    targets = [read(name)["spec"]["scaleTargetRef"] for name in ("keda-scaledobject.yml", "hpa.yml")]
    assert {(target["kind"], target["name"]) for target in targets} == {("StatefulSet", "batchyard-worker")}


@pytest.mark.parametrize("behaviour", behaviours())
def test_down_is_slower_than_up(behaviour):
    up, down = behaviour["scaleUp"], behaviour["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 10 * up["stabilizationWindowSeconds"]
    assert {policy["type"] for policy in up["policies"] + down["policies"]} <= {"Pods", "Percent"}
    assert all(0 < policy["periodSeconds"] <= 1800 for policy in up["policies"] + down["policies"])
