"""The dashboard for Grafana asks for the metrics that are exported, and no others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayff.distributed.ray_metrics import GAUGES, RUN_COUNTERS, STAGE_COUNTERS

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "jobs" / "grafana-dashboard.json").read_text()
)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def queries() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]


def test_it_asks_for_every_metric_that_is_exported_and_for_no_other() -> None:
    asked = {name for query in queries() for name in re.findall(r"\w*rayff\w*", query)}
    assert asked == {f"ray_{name}" for name in (*STAGE_COUNTERS, *RUN_COUNTERS, *GAUGES)}


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_is_of_the_chosen_runs_and_its_tags_are_there(query: str) -> None:
    (name,) = re.findall(r"ray_(\w+)\{", query)
    assert 'run=~"$run"' in query
    if name not in GAUGES:
        assert re.search(r"(rate|increase)\(ray_\w+\{[^}]*\}\[\$__\w+\]\)", query)
    if "stage" in query.replace(name, ""):
        assert name in STAGE_COUNTERS
    assert query.count("(") == query.count(")")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_has_what_grafana_needs(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("timeseries", "stat", "bargauge")
    assert panel["datasource"] == DATASOURCE
    assert panel["description"]
    assert {"defaults", "overrides"} == panel["fieldConfig"].keys()
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert "{{run}}" in target["legendFormat"]
        assert ("by (run, stage)" in target["expr"]) == ("{{stage}}" in target["legendFormat"])


def test_data_source_and_runs_are_chosen_at_the_top() -> None:
    source, run = DASHBOARD["templating"]["list"]
    assert [source[key] for key in ("name", "type", "query")] == [
        *("datasource", "datasource", "prometheus"),
    ]
    assert [run[key] for key in ("name", "type", "multi", "includeAll")] == [
        *("run", "query", True, True),
    ]
    assert run["query"]["query"] == "label_values(ray_rayff_images_total, run)"
