"""The dashboard's file, and how Grafana finds it."""

import json
from pathlib import Path

import yaml

from deploy.grafana.dashboard import FILE, ROWS, text

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"


def test_the_file_is_what_its_source_says():
    assert FILE.read_text() == text(), "run: python deploy/grafana/dashboard.py"


def test_panels_do_not_overlap_and_have_a_title_and_queries():
    panels = json.loads(FILE.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(ROWS)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert (x, y) not in taken
                taken.add((x, y))
        assert panel["title"]
        assert panel["type"] == "row" or all(target["expr"] for target in panel["targets"])


def test_grafana_finds_it():
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    panels = json.loads(FILE.read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {source["uid"]}
    services = yaml.safe_load((GRAFANA.parents[1] / "docker-compose.yml").read_text())["services"]
    assert source["url"].startswith("http://prometheus:")
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (provider,) = yaml.safe_load((provisioning / "dashboards/batchyard.yml").read_text())["providers"]
    assert mounts == {
        "./deploy/grafana/provisioning": "/etc/grafana/provisioning",
        "./deploy/grafana/dashboards": provider["options"]["path"],
    }
