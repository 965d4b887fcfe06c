"""Pictures of terminals in the documentation (docs/images)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import pytest

from tests.docs import machines, screenshots
from tests.docs.commands import ROOT
from tests.docs.screenshots import SCREENSHOTS

if TYPE_CHECKING:
    from tests.docs.screenshots import Screenshot

_SVG: Final = "{http://www.w3.org/2000/svg}"
#: Elements that refer to nothing outside the picture. An `a`, `image` or `use` could.
_ELEMENTS: Final = {"svg", "style", "defs", "clipPath", "rect", "circle", "g", "text"}
_each = pytest.mark.parametrize("screenshot", SCREENSHOTS, ids=lambda each: each.name)


def _picture(screenshot: Screenshot) -> str:
    return (screenshots.IMAGES / f"{screenshot.name}.svg").read_text(encoding="utf-8")


def _shown(picture: str) -> str:
    """Return the text of a picture; raises ParseError if it is no XML."""
    texts = ET.fromstring(picture).iter(f"{_SVG}text")  # noqa: S314 - our own picture
    return "".join(each.text or "" for each in texts).replace("\N{NO-BREAK SPACE}", " ")


@_each
def test_picture_shows_its_command(screenshot: Screenshot) -> None:
    assert f"$ {screenshot.command}" in _shown(_picture(screenshot))


@_each
def test_picture_refers_to_nothing_outside(screenshot: Screenshot) -> None:
    picture = _picture(screenshot)
    elements = {each.tag for each in ET.fromstring(picture).iter()}  # noqa: S314 - our own picture
    assert elements <= {f"{_SVG}{name}" for name in _ELEMENTS}
    assert re.findall(r"url\((?!#)|@import|@font-face|href|\bsrc\b", picture) == []


@_each
def test_picture_shows_nothing_of_the_machine_that_drew_it(screenshot: Screenshot) -> None:
    shown = _shown(_picture(screenshot))
    assert re.findall(r"(?<![\w:/])/(?:home|root|tmp|usr|var|work)\b", shown) == []
    # The only host name in an event is the one that `machine.sh` sets.
    assert re.findall(r"  ([\w-]+)  ocsf-nft [0-9.]+ started", shown) in ([], ["host-1"])


@_each
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-sandbox.md"])
def test_page_has_the_picture(screenshot: Screenshot, page: str) -> None:
    assert f"images/{screenshot.name}.svg)" in (ROOT / page).read_text(encoding="utf-8")


def test_picture_has_the_last_table_and_no_event() -> None:
    text = (
        "\nThe sandbox is fenced.\n\n\x1b[?25lone row\r\x1b[1A\x1b[2K\x1b[1mtwo\x1b[0m <rows>\n\n"
        "── The complete event of the first attempt ──\n{\n}\n─────\nThe end.\n"
    )
    shown = _shown(screenshots.drawn(SCREENSHOTS[0], text))
    assert shown.split() == [
        *("ocsf-nft$", "ocsf-nft", "demo", "The", "sandbox", "is", "fenced."),  # after the title
        *("two", "<rows>", "…", "the", "complete", "event", "of", "the", "first", "attempt", "…"),
        *("The", "end."),
    ]


def test_picture_of_a_report_is_small_and_on_its_page() -> None:
    picture = (screenshots.IMAGES / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000
    assert "images/report.png)" in (ROOT / "docs/how-to/report.md").read_text(encoding="utf-8")
    assert "Sandbox agent-7" in screenshots.report_page().decode()


@pytest.mark.kernel
def test_command_of_a_picture_runs_in_a_terminal() -> None:
    with machines.started(None) as machine:
        text = screenshots.printed(machine, "test -t 1 && stty size && hostname")
        with pytest.raises(SystemExit, match=r"echo 1; false: exit 1\n1\n"):
            screenshots.printed(machine, "echo 1; false")
    assert text == "60 100\nhost-1\n"
