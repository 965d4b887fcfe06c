"""Pages of reports in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.report.page import page
from tests.report.browser import Browser
from tests.report.day import BEGIN
from tests.report.test_aggregator import DAY, view_of
from tests.report.test_page import changed

if TYPE_CHECKING:
    from pathlib import Path

_PHONE: Final = 360
#: Ratio of luminances that texts need at least: WCAG 2.2, success criterion 1.4.3.
_CONTRAST: Final = 4.5
#: The lowest contrast of a text to the background behind it.
_LOWEST_CONTRAST: Final = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).map((each) => each / 255).map(
      (each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (parts(colour)[3] !== 0) return light(colour);
    }
    return light("rgb(255, 255, 255)");
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let lowest = 21;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (node.closest("svg") || !walker.currentNode.data.trim()) continue;
    const both = [light(getComputedStyle(node).color), back(node)].sort((a, b) => b - a);
    lowest = Math.min(lowest, (both[0] + 0.05) / (both[1] + 0.05));
  }
  return lowest;
})()
"""


@pytest.mark.slow
def test_page_fits_a_phone_and_paper_and_can_be_read_in_the_dark(tmp_path: Path) -> None:
    path, hostile = tmp_path / "report.html", tmp_path / "hostile.html"
    path.write_bytes(page(view_of(DAY), subject="Sandbox agent-7", made_ms=BEGIN))
    long = changed(DAY, lambda text: f"{text}{'W' * 300}<script>document.title='x'</script>")
    hostile.write_bytes(page(view_of(long), subject="Hostile", made_ms=BEGIN))
    with Browser() as browser:
        for each, width, dark, paper in (
            (path, _PHONE, False, False),
            (path, 1100, True, False),
            (path, 700, False, True),
            (hostile, _PHONE, True, False),
            (hostile, 1100, False, False),
        ):
            browser.load(each, width=width, dark=dark, paper=paper)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(_LOWEST_CONTRAST) >= _CONTRAST
        assert browser.evaluate("document.title") == "Hostile: report"
        assert browser.evaluate("document.scripts.length") == 0
        assert browser.picture(400).startswith(b"\x89PNG")
    # No error, nothing that the policy of the page refused, and no request.
    assert browser.reports == []
