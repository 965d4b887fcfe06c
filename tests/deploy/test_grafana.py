"""The dashboards and the alerts, held to the metrics that there are, by Prometheus' own engine."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from ocsf_nft.ocsf import finding_parts
from ocsf_nft.ocsf.event_codes import EventCode
from tests.deploy.exposed import Exposed, exposed, exposition
from tests.deploy.manifests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FOLDER = ROOT / "deploy/grafana"
_DASHBOARDS: dict[str, dict[str, Any]] = {
    path.name: json.loads(path.read_text()) for path in sorted(_FOLDER.glob("*.json"))
}
_ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((_FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
#: Labels that Prometheus adds to each series, and its own metric of a target.
_SCRAPED = {"job": "ocsf-nft", "instance": "host-1.example:9464"}
_OWN = {"up"}
#: Values that Grafana inserts for its variables.
_VARIABLES = {"$__rate_interval": "2m", "$instance": ".*", "$sandbox": ".*"}


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exposed]:
    return exposed(tmp_path_factory.mktemp("exposed"))


def _panels(*names: str) -> list[dict[str, Any]]:
    return [
        panel
        for name in names or _DASHBOARDS
        for panel in _DASHBOARDS[name]["panels"]
        if panel["type"] != "row"
    ]


def _shown(*names: str) -> Iterator[str]:
    """Yield each expression of the dashboards, with its variables replaced."""
    for panel in _panels(*names):
        for target in panel["targets"]:
            found = target["expr"]
            for variable, value in _VARIABLES.items():
                found = found.replace(variable, value)
            yield found


def _expressions() -> list[str]:
    return [*_shown(), *(rule["expr"] for rule in _ALERTS)]


def _promtool(*arguments: str | Path, stdin: str = "") -> str:
    done = subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tested(folder: Path, *tests: dict[str, Any], every: str = "30s") -> None:
    """Evaluate the tests with Prometheus' engine; fail if a result differs from a test.

    ``every`` is the interval of the alert rules.
    """
    file = folder / "test.yaml"
    rules = [str(_FOLDER / "alerts.yaml")]
    made = {"rule_files": rules, "evaluation_interval": every, "tests": tests}
    file.write_text(yaml.safe_dump(made))
    _promtool("test", "rules", file)


def _series(name: str, values: str, **labels: str) -> dict[str, str]:
    text = ",".join(f'{label}="{value}"' for label, value in (_SCRAPED | labels).items())
    return {"series": f"{name}{{{text}}}", "values": values}


def test_table_of_metrics_matches_the_code(metrics: dict[str, Exposed]) -> None:
    text = (_FOLDER / "README.md").read_text()
    rows = re.findall(r"(?m)^\| `(ocsf_nft_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", text)
    assert [tuple(row) for row in rows] == [
        (each.name, each.type, ", ".join(sorted(each.labels)) or "-", each.meaning)
        for each in metrics.values()
    ]


def test_readme_has_the_number_of_alerts() -> None:
    groups = yaml.safe_load((_FOLDER / "alerts.yaml").read_text())["groups"]
    runs, findings = (len(group["rules"]) for group in groups)
    words = {10: "ten", 11: "eleven", 12: "twelve"}
    text = (_FOLDER / "README.md").read_text()
    assert f"{words[runs]} alerts about the runs, and {words[findings]} about findings" in text
    assert f"- The last {words[findings]} are about findings" in text


def test_exposition_is_well_formed(tmp_path: Path) -> None:
    assert _promtool("check", "metrics", stdin=exposition(tmp_path)) == ""


def test_expressions_use_known_metrics_and_labels(
    metrics: dict[str, Exposed], subtests: pytest.Subtests
) -> None:
    for expression in _expressions():
        with subtests.test(expression):
            names = set(re.findall(r"\b(ocsf_nft_\w+|up)\b", re.sub(r'"[^"]*"', "", expression)))
            assert names
            assert names <= metrics.keys() | _OWN
            known = {label for name in names - _OWN for label in metrics[name].labels}
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", expression))
            for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
                used |= {label.strip() for label in group.split(",")}
            if "up" in names:
                used.discard("sandbox")
            assert used <= known | _SCRAPED.keys()


def test_dashboards_show_each_metric(metrics: dict[str, Exposed]) -> None:
    shown = " ".join(_shown())
    assert {name for name in metrics if not re.search(rf"\b{name}\b", shown)} == set()


def test_legends_and_alerts_use_labels_of_their_expression(
    metrics: dict[str, Exposed],
) -> None:
    for panel in _panels():
        for target in panel["targets"]:
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            groups = re.findall(r"by \(([^)]*)\)", target["expr"])
            grouped = {label.strip() for group in groups for label in group.split(",")}
            assert legend <= (grouped or _labels(target["expr"], metrics)), target
    for rule in _ALERTS:
        annotations = json.dumps(rule["annotations"])
        used = set(re.findall(r"\$labels\.(\w+)", annotations))
        assert used <= _labels(rule["expr"], metrics) | _SCRAPED.keys(), rule["alert"]


def _labels(expression: str, metrics: dict[str, Exposed]) -> set[str]:
    names = set(re.findall(r"\bocsf_nft_\w+", expression))
    return {label for name in names for label in metrics[name].labels} | _SCRAPED.keys()


@pytest.mark.parametrize("dashboard", _DASHBOARDS)
def test_each_panel_shows_data_of_a_scraped_run(
    metrics: dict[str, Exposed], tmp_path: Path, dashboard: str
) -> None:
    series = [_series("up", "1x20")] + [
        _series(each.name, "5+1x20", **each.sample) for each in metrics.values()
    ]
    found = [
        {
            "expr": f"clamp_max(count({expression}), 1)",
            "eval_time": "10m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for expression in _shown(dashboard)
    ]
    assert len(found) > 15
    _tested(tmp_path, {"interval": "30s", "input_series": series, "promql_expr_test": found})


def test_number_of_a_period_has_the_first_sample_of_a_series_and_nothing_older(
    metrics: dict[str, Exposed], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """A first gap or finding, and a sandbox that is new, have no series before."""
    over_time = re.compile(r"(?:increase|max_over_time)\(ocsf_nft_(?!sink_)\w+_total")
    expressions = [each for each in _shown() if over_time.search(each)]
    assert len(expressions) == 10
    for expression in expressions:
        with subtests.test(expression):
            (name,) = set(re.findall(r"ocsf_nft_\w+", expression))
            labels = metrics[name].sample
            series = [
                _series(name, "100x1600", **labels | {"sandbox": "old"}),
                _series(name, "_x1499 4x100", **labels | {"sandbox": "new"}),
                # Its last sample is the first one of the last hour.
                _series(name, "100x1441 stale", **labels | {"sandbox": "ended"}),
            ]
            found = {
                "expr": f"sum({expression})",
                "eval_time": "25h",
                "exp_samples": [{"labels": "{}", "value": 4}],
            }
            test = {"interval": "1m", "input_series": series, "promql_expr_test": [found]}
            _tested(tmp_path, test, every="1h")


class _Case(NamedTuple):
    """Series with and without an alert, and the times at which it is pending and firing."""

    faulty: list[dict[str, str]]
    healthy: list[dict[str, str]]
    pending_at: str
    firing_at: str


def _finding(code: str, values: str, *, alert: str = "true") -> dict[str, str]:
    labels = {"sandbox": "agent", "code": code, "severity": "high", "alert": alert}
    return _series("ocsf_nft_finding_timestamp_seconds", values, **labels)


def _of_finding(code: str, other: str, *, alert: str = "true") -> _Case:
    """Return the case of a finding after two minutes, and of a finding that is another alert's.

    The test's clock begins at 0, so the finding of a time before is one with a negative time.
    """
    long_ago = _finding(code, "-1000x60", alert=alert)
    return _Case(
        [_finding(code, "_x4 120x60", alert=alert)],
        [long_ago, _finding(other, "60x60", alert=alert)],
        "1m30s",
        "2m30s",
    )


_GAPS = {"sandbox": "agent", "source": "nflog"}
_RULE = {"sandbox": "agent", "rule": "egress", "mode": "enforcing"}
_GIB = str(1 << 30)
_CASES = {
    "OcsfNftFenceDown": _Case(
        [_series("ocsf_nft_fence_active", "1x3 0x20", sandbox="agent")],
        # Repeatedly restored at once.
        [_series("ocsf_nft_fence_active", "1 0 1 0 1 0 1 0 1x20", sandbox="agent")],
        "2m30s",
        "3m30s",
    ),
    "OcsfNftUnwatched": _Case(
        [_series("ocsf_nft_watched", "1x3 0x20", sandbox="agent")],
        [_series("ocsf_nft_watched", "1x3 0x5 1x20", sandbox="agent")],
        "6m",
        "7m30s",
    ),
    "OcsfNftCounterMismatch": _Case(
        [_series("ocsf_nft_counter_mismatch_packets", "0x3 -3x20", **_RULE)],
        [_series("ocsf_nft_counter_mismatch_packets", "0x3 4x5 0x20", **_RULE)],
        "6m",
        "7m30s",
    ),
    "OcsfNftStoreUnwritable": _Case(
        [_series("ocsf_nft_store_up", "0x20")], [_series("ocsf_nft_store_up", "1x20")], "30s", "2m"
    ),
    "OcsfNftSinkDown": _Case(
        [_series("ocsf_nft_sink_up", "0x40", sink="siem")],
        [_series("ocsf_nft_sink_up", "0x16 1x40", sink="siem")],
        "9m",
        "11m",
    ),
    "OcsfNftStoreFilling": _Case(
        # Events with captured processes have 5.5 kB: no more of them have room.
        [
            _series("ocsf_nft_sink_waiting_events", "165000x20", sink="siem"),
            _series("ocsf_nft_sink_waiting_events", "0x20", sink="lake"),
            _series("ocsf_nft_store_events", "195000x20"),
            _series("ocsf_nft_store_bytes", f"{_GIB}x20"),
            _series("ocsf_nft_store_max_bytes", f"{_GIB}x20"),
        ],
        # Full of events that every sink has.
        [
            _series("ocsf_nft_sink_waiting_events", "1000x20", sink="siem"),
            _series("ocsf_nft_store_events", "195000x20"),
            _series("ocsf_nft_store_bytes", f"{_GIB}x20"),
            _series("ocsf_nft_store_max_bytes", f"{_GIB}x20"),
        ],
        "30s",
        "2m",
    ),
    "OcsfNftDeadLetters": _Case(
        [_series("ocsf_nft_sink_dead_letters", "0x3 1x20", sink="siem")],
        [_series("ocsf_nft_sink_dead_letters", "0x20", sink="siem")],
        "1m",
        "2m30s",
    ),
    "OcsfNftGaps": _Case(
        # The first gap of a source. Before it the source has no series.
        [_series("ocsf_nft_gaps_total", "_x4 1x60", **_GAPS)],
        [_series("ocsf_nft_watched", "1x20", sandbox="agent")],
        "1m30s",
        "3m",
    ),
    "OcsfNftAttributionDegraded": _Case(
        [
            _series("ocsf_nft_attribution_method", "1x3 0x40", method="capture"),
            _series("ocsf_nft_attribution_method", "0x3 1x40", method="socket"),
        ],
        # A host that never captured.
        [
            _series("ocsf_nft_attribution_method", "0x40", method="capture"),
            _series("ocsf_nft_attribution_method", "1x40", method="socket"),
        ],
        "2m30s",
        "3m30s",
    ),
    "OcsfNftDown": _Case([_series("up", "1 0x20")], [_series("up", "1 0x5 1x20")], "4m", "7m"),
    "OcsfNftAbsent": _Case([], [_series("up", "0x20")], "4m", "6m"),
    "OcsfNftCloudMetadata": _of_finding("cloud-metadata-finding", "bypass-finding"),
    "OcsfNftDnsTunnel": _of_finding("dns-tunnel-finding", "scan-finding"),
    "OcsfNftTampering": _of_finding("tampering-finding", "fence-removed-finding"),
    "OcsfNftFenceBypassed": _of_finding("fence-bypassed-finding", "tampering-finding"),
    "OcsfNftSurroundings": _of_finding("surroundings-changed-finding", "tampering-finding"),
    "OcsfNftFenceRemoved": _of_finding("restore-stopped-finding", "tampering-finding"),
    "OcsfNftScan": _of_finding("scan-finding", "bypass-finding"),
    "OcsfNftBypass": _of_finding("inbound-finding", "permissive-finding"),
    "OcsfNftPermissive": _of_finding("permissive-finding", "bypass-finding", alert="false"),
    "OcsfNftCollection": _of_finding("collection-finding", "tampering-finding", alert="false"),
}
#: Its packets have an alert of their own, which ends when the numbers match again.
_WITHOUT_ALERT = {EventCode.COUNTER_MISMATCH_FINDING}


def _firing(alert: str, at: str, times: int) -> dict[str, Any]:
    return {
        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
        "eval_time": at,
        "exp_samples": [{"labels": "{}", "value": times}] if times else [],
    }


def _case(series: list[dict[str, str]], *expected: dict[str, Any]) -> dict[str, Any]:
    return {"interval": "30s", "input_series": series, "promql_expr_test": list(expected)}


def test_each_alert_has_a_case() -> None:
    assert [rule["alert"] for rule in _ALERTS] == list(_CASES)


@pytest.mark.parametrize("alert", _CASES)
def test_alert_fires_after_its_time_and_not_before(alert: str, tmp_path: Path) -> None:
    case = _CASES[alert]
    faulty = _case(
        case.faulty, _firing(alert, case.pending_at, 0), _firing(alert, case.firing_at, 1)
    )
    healthy = _case(case.healthy, *(_firing(alert, at, 0) for at in ("0", "5m", "10m")))
    _tested(tmp_path, faulty, healthy)


def test_each_finding_has_exactly_one_alert(tmp_path: Path) -> None:
    codes = [code for code in EventCode if code.class_uid == 2004]
    tests = [
        _case(
            [_finding(code, "0x40")],
            {
                "expr": 'count(ALERTS{alertname!="OcsfNftAbsent"})',
                "eval_time": "10m",
                "exp_samples": [] if code in _WITHOUT_ALERT else [{"labels": "{}", "value": 1}],
            },
        )
        for code in codes
    ]
    assert len(tests) == 15
    _tested(tmp_path, *tests)


def test_alert_on_findings_ends_15_minutes_after_the_last_update(tmp_path: Path) -> None:
    alert = "OcsfNftScan"
    # Updated at 10 minutes, and a second series of another severity that began before.
    series = [_finding("scan-finding", "0x19 600x60"), _finding("scan-finding", "0x79", alert="no")]
    _tested(
        tmp_path,
        _case(series, _firing(alert, "24m", 1), _firing(alert, "26m", 0)),
    )


def test_low_findings_of_bypasses_are_no_alert(tmp_path: Path) -> None:
    series = [
        _finding(code, "0x40", alert="false") for code in ("bypass-finding", "inbound-finding")
    ]
    _tested(tmp_path, _case(series, _firing("OcsfNftBypass", "5m", 0)))


def test_each_alert_has_a_page_of_the_runbook_that_names_it() -> None:
    for rule in _ALERTS:
        page = ROOT / rule["annotations"]["runbook"]
        assert rule["alert"] in page.read_text()
        index = (page.parent / "index.md").read_text()
        assert re.search(rf"`{rule['alert']}`.*\({page.name}\)", index), rule["alert"]


def test_alert_names_the_pages_of_all_its_findings() -> None:
    kinds = [
        kind for kind in vars(finding_parts).values() if isinstance(kind, finding_parts.FindingKind)
    ]
    for rule in _ALERTS:
        codes = re.findall(r"[a-z-]+-finding", rule["expr"])
        pages = {kind.page for kind in kinds if kind.code in codes}
        text = " ".join(rule["annotations"].values())
        assert {page for page in pages if f"runbook/{page}.md" not in text} == set(), rule["alert"]


def test_alert_on_gaps_ends_after_their_report(tmp_path: Path) -> None:
    alert = "OcsfNftGaps"
    old = [_series("ocsf_nft_gaps_total", "7x60 8x60", **_GAPS)]
    _tested(
        tmp_path,
        _case(
            old,
            _firing(alert, "29m", 0),
            _firing(alert, "31m", 1),
            _firing(alert, "50m", 0),
        ),
    )


def test_alert_on_stopped_capture_fires_for_a_day(tmp_path: Path) -> None:
    alert = "OcsfNftAttributionDegraded"
    fallen = [_series("ocsf_nft_attribution_method", "1x10 0x4000", method="capture")]
    _tested(
        tmp_path,
        _case(fallen, _firing(alert, "20h", 1), _firing(alert, "25h", 0)),
    )


def test_prometheus_accepts_the_rules_and_the_scrape_configuration() -> None:
    _promtool("check", "rules", "--lint-fatal", _FOLDER / "alerts.yaml")
    _promtool("check", "config", "--lint-fatal", _FOLDER / "prometheus.yaml")
    found = yaml.safe_load((_FOLDER / "prometheus.yaml").read_text())
    assert found["scrape_configs"][0]["job_name"] == _SCRAPED["job"]


def test_dashboards_have_their_own_uids_and_titles() -> None:
    for key in ("uid", "title"):
        assert len({each[key] for each in _DASHBOARDS.values()}) == len(_DASHBOARDS) == 2


@pytest.mark.parametrize("name", _DASHBOARDS)
def test_dashboard_meets_the_import_rules_of_grafana(name: str) -> None:
    dashboard = _DASHBOARDS[name]
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard["uid"])
    assert dashboard["schemaVersion"] >= 36  # the first with a data source as type and uid
    assert "id" not in dashboard  # assigned by Grafana's database
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "instance", "sandbox"]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in _panels(name):
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", _DASHBOARDS)
def test_panels_of_a_dashboard_do_not_overlap(name: str) -> None:
    occupied: set[tuple[int, int]] = set()
    for panel in _DASHBOARDS[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & occupied, panel["title"]
        occupied |= cells
