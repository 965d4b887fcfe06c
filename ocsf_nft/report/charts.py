"""Charts of a report as SVG: counts over time, and the times of findings and gaps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.report import wording
from ocsf_nft.report.html import Content, Html, element, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.report.histogram import Histogram
    from ocsf_nft.report.view import View

#: Height of the chart, and width of the charts, in units of the SVG.
_HEIGHT: Final = 100.0
_WIDTH: Final = 1000.0
#: Smallest visible width and height.
_LEAST: Final = 3.0
_LANES: Final = 8


class _Axis(NamedTuple):
    """Time axis of all charts, in ms since the epoch."""

    start_ms: int
    end_ms: int

    def x(self, time_ms: int) -> float:
        share = (time_ms - self.start_ms) / max(1, self.end_ms - self.start_ms)
        return round(_WIDTH * min(1.0, max(0.0, share)), 2)

    def labels(self) -> Html:
        middle = (self.start_ms + self.end_ms) // 2
        times = (self.start_ms, middle, self.end_ms)
        labels = (element("span", wording.utc(each)) for each in times)
        return element("div", *labels, class_="axis")


def activity(view: View) -> Html | None:
    """Return the chart of packets over time, and a lane for each finding; None without a time."""
    if view.first_ms is None or view.last_ms is None:
        return None
    histogram = view.histogram
    axis = _Axis(view.first_ms, max(view.last_ms, view.first_ms + 1000))
    if histogram.bars:
        axis = _Axis(min(view.first_ms, histogram.start_ms), max(view.last_ms, histogram.end_ms))
    return element(
        "figure",
        *_counts(histogram, axis),
        axis.labels(),
        element("ul", *_lanes(view, axis), class_="lanes"),
    )


def _counts(histogram: Histogram, axis: _Axis) -> Iterator[Html]:
    if not histogram.bars:
        yield element("figcaption", "No packet in this period; the times are UTC.")
        return
    most = max(map(sum, histogram.bars))
    every = wording.duration(histogram.width_ms)
    yield element(
        "figcaption",
        f"Packets in each {every}, up to {most:,}, on a square root scale; UTC.",
        _legend("blocked"),
        _legend("allowed") if any(allowed for _, allowed in histogram.bars) else None,
    )
    blocked, allowed = (sum(column) for column in zip(*histogram.bars, strict=True))
    label = f"Bar chart: {blocked:,} packets blocked and {allowed:,} allowed over time"
    lines = (
        element("line", class_="grid", x1=0, x2=_WIDTH, y1=y, y2=y)
        for y in (0, _HEIGHT / 2, _HEIGHT)
    )
    yield element(
        "svg",
        element("title", label),
        *lines,
        *_bars(histogram, axis, most),
        class_="chart",
        role="img",
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        preserveAspectRatio="none",
        aria_label=label,
    )


def _bars(histogram: Histogram, axis: _Axis, most: int) -> Iterator[Html]:
    for index, bar in enumerate(histogram.bars):
        start = histogram.start_ms + index * histogram.width_ms
        left, right = axis.x(start), axis.x(start + histogram.width_ms)
        floor = _HEIGHT
        # The square root of the sum, divided in proportion.
        unit = _HEIGHT / math.sqrt(most * max(1, sum(bar)))
        for name, number in zip(("blocked", "allowed"), bar, strict=True):
            if number:
                height = max(_LEAST, number * unit)
                floor = max(0.0, floor - height)
                yield element(
                    "rect",
                    element("title", f"{wording.utc(start)}: {number:,} {name}"),
                    class_=name,
                    x=left,
                    y=round(floor, 2),
                    width=round(max(_LEAST, (right - left) * 0.85), 2),
                    height=round(height, 2),
                )


def _legend(name: str) -> Html:
    square = element("rect", class_=name, width=1, height=1)
    key = element("svg", square, class_="key", viewBox="0 0 1 1", aria_hidden="true")
    return element("span", key, name, class_="legend")


def _lanes(view: View, axis: _Axis) -> Iterator[Html]:
    for number, finding in enumerate(view.findings[:_LANES], 1):
        span = finding.first_ms, finding.last_ms
        text = f"{wording.severity(finding.severity_id)}: {finding.title}"
        label = element("a", text, href=f"#finding-{number}")
        yield _lane(axis, label, [span], f"f{finding.severity_id}")
    limits = [each for each in view.coverage.limits.entries if each.end_ms >= axis.start_ms]
    if limits:
        text = f"Not fully known: {wording.counted(len(limits), 'period')}"
        yield _lane(axis, text, [(each.start_ms, each.end_ms) for each in limits], "gap")


def _lane(axis: _Axis, label: Content, spans: list[tuple[int, int]], class_: str) -> Html:
    rail = element("rect", class_="rail", width=_WIDTH, height=10)
    bars = []
    for start, end in spans:
        left, right = axis.x(start), axis.x(end)
        width = max(2 * _LEAST, right - left)
        left = min(left, _WIDTH - width)
        bars.append(element("rect", class_=class_, x=left, width=round(width, 2), height=10))
    picture = element(
        "svg",
        rail,
        *bars,
        class_="lane",
        viewBox=f"0 0 {_WIDTH:g} 10",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    times = wording.period(min(s for s, _ in spans), max(e for _, e in spans))
    return element("li", joined([label, element("span", f" · {times}", class_="dim")]), picture)
