"""The rules, the dashboard and the page on the metrics name what there is, and all of it."""

import json
import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types of its own
from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR

from jobpipe.api.families import families
from jobpipe.api.standing import Standing
from jobpipe.api.traffic import Traffic
from jobpipe.clock import WallClock
from jobpipe.engine.node import Node
from jobpipe.engine.tallies import MOST, PAIRS
from jobpipe.handlers.registry import load
from jobpipe.job import Status
from jobpipe.settings import Settings
from jobpipe.store.memory import MemoryStore
from tests.docs.pages import DOCS, quoted, read, rows, section

PAGE = DOCS / "metrics.md"
RULES = [
    rule
    for group in yaml.safe_load(read(DOCS / "monitoring/alerts.yml"))["groups"]
    for rule in group["rules"]
]
BOARD: dict[str, Any] = json.loads(read(DOCS / "monitoring/grafana.json"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]

SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


@pytest.fixture(scope="module")
def metrics():
    """Every metric, by its name in the text: its type and its labels."""
    node = Node(Settings(store="memory:"), MemoryStore(), load([]), WallClock())
    node.tallies.waits["q"].add([1])
    node.tallies.enqueued["k", "q"].value += 1
    traffic = Traffic()
    traffic.note("/enqueue", "POST", 202, 0.1)
    stands = Standing({("q", Status.QUEUED): 1}, {"q": 1.0}, {"q": False}, {"k": 1})
    found = {}
    for piece in (*families(node, traffic, stands), *PROCESS_COLLECTOR.collect(), *GC_COLLECTOR.collect()):
        name = piece.name if piece.type == "histogram" else piece.name + SUFFIXES[piece.type][0]
        found[name] = piece.type, {label for one in piece.samples for label in one.labels} - {"le"}
    return found


def series(metrics):
    """The names under which Prometheus keeps them."""
    return {"up"} | {
        name + suffix
        for name, (kind, _) in metrics.items()
        for suffix in (SUFFIXES["histogram"] if kind == "histogram" else ("",))
    }


def named(expression):
    """The metrics that an expression names."""
    return set(re.findall(r"\b(?:jobpipe|process|python)_\w+|\bup(?=\{)", expression))


def test_the_page_describes_every_metric_with_its_type_and_its_labels(metrics):
    table = {
        name: (row[1].split(":")[0], set(quoted(row[1])))
        for row in rows(section(PAGE, "## The metrics").split("\n### ")[0])
        for name in quoted(row[0])
    }

    assert set(table) == set(metrics)
    ours = {name: ("gauge" if kind == "info" else kind, labels) for name, (kind, labels) in metrics.items()}
    assert {name: told for name, told in table.items() if name.startswith("jobpipe_")} == {
        name: told for name, told in ours.items() if name.startswith("jobpipe_")
    }


def test_rules_and_dashboard_name_only_metrics_that_exist(metrics):
    expressions = [rule["expr"] for rule in RULES]
    expressions += [target["expr"] for panel in PANELS for target in panel["targets"]]
    expressions += [one["definition"] for one in BOARD["templating"]["list"] if "definition" in one]
    names = set[str]().union(*map(named, expressions))

    assert len(names) > 20
    assert names - series(metrics) == set()


def test_each_alert_has_its_section_and_each_section_its_alert():
    headings = re.findall(r"^### (\w+)$", section(PAGE, "## Alerts"), re.MULTILINE)

    assert headings == [rule["alert"] for rule in RULES]
    assert [rule["annotations"]["runbook"] for rule in RULES] == [
        f"docs/metrics.md#{heading.lower()}" for heading in headings
    ]
    assert all({"summary", "look"} <= set(rule["annotations"]) for rule in RULES)


def test_each_alert_is_tested_and_leads_to_a_panel():
    tests = yaml.safe_load(read(DOCS.parent / "tests/monitoring/alerts.yml"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    panels = {str(panel["id"]) for panel in PANELS}

    assert fired == {rule["alert"] for rule in RULES}
    for rule in RULES:
        found = re.match(r"/d/(\w+)\?viewPanel=(\d+)", rule["annotations"]["dashboard"])
        assert found
        assert (found[1], found[2] in panels) == (BOARD["uid"], True)


def test_the_dashboard_can_be_imported_as_it_is():
    uids = {str(panel["datasource"]["uid"]) for panel in PANELS}
    uids |= {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    variables = [one["name"] for one in BOARD["templating"]["list"]]
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for panel in PANELS for t in panel["targets"])))

    assert (uids, variables) == ({"${datasource}"}, ["datasource", "job", "queue", "kind"])
    assert used - {"__rate_interval"} == {"job", "queue", "kind"}
    assert (len(PANELS), sum(panel["type"] == "row" for panel in BOARD["panels"])) == (12, 4)
    assert [panel["title"] for panel in PANELS if not panel["description"]] == []
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_bounds_in_the_docs_are_those_in_force():
    words = " ".join(read(PAGE).split())

    assert f"The first {MOST} kinds and the first {MOST} queues" in words
    assert f"names {PAIRS} pairs" in words
