from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.errors import UsageError
from ocsf_nft.flows import incidents, report_schedule, scans
from ocsf_nft.ocsf import enums, versions
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.finding_settings import FindingSettings
from ocsf_nft.ocsf.model import Model, children
from tests.docs.commands import ROOT
from tests.docs.field_guide import BEGIN, END, guide, with_current_guide
from tests.queries import siem_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE: Final = ROOT / "docs/reference/events.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
GUIDE: Final = guide()
_COMMAND: Final = (sys.executable, "-m", "tests.docs.field_guide")


def models() -> Iterator[type[Model]]:
    """Yield every class, and every object that a class contains."""
    found: set[type[Model]] = set()
    waiting: list[type[Model]] = list(CLASSES.values())
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.add(model)
            waiting += children(model).values()
            yield model


MODELS: Final = list(models())


def rows(model: type[Model]) -> dict[str, list[str]]:
    """Return the cells of the guide's table of a model, by attribute."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", model.__name__)
    (start,) = re.finditer(rf"^####? {name}(?: \(\d+\))?$", GUIDE, re.MULTILINE | re.IGNORECASE)
    section = re.split(r"^#", GUIDE[start.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {attribute.strip("`"): rest for first, *rest in cells for attribute in first.split(", ")}


def test_page_contains_the_generated_guide() -> None:
    assert with_current_guide(TEXT) == TEXT, "run: make reference"


def test_guide_has_every_attribute_and_its_source(subtests: pytest.Subtests) -> None:
    for model in MODELS:
        with subtests.test(model.__name__):
            found = rows(model)
            assert found.keys() == model.model_fields.keys()
            for name, (kind, since, there, source) in found.items():
                assert kind
                assert source, name
                assert since == versions.SINCE.get(model, {}).get(name, "")
                is_optional = re.search(r"None|Optional", str(model.model_fields[name].annotation))
                assert there == ("if known" if is_optional else "always")


def test_attributes_documented_as_always_present_are_present() -> None:
    for event in siem_events.unique_events():
        always = {name for name, cells in rows(CLASSES[event["class_uid"]]).items()
                  if cells[2] == "always"}  # fmt: skip
        assert always <= event.keys()


def test_guide_has_every_id_and_its_caption() -> None:
    text = re.sub(r" \(since [\d.]+\)", "", GUIDE)
    listed = {
        kind.__name__: ", ".join(f"`{int(member)}` {member.caption}" for member in kind)
        for kind in enums.Captioned.__subclasses__()
    }
    assert listed
    assert {name: ids for name, ids in listed.items() if ids not in text} == {}


def test_renamed_values_are_in_the_guide() -> None:
    for since, text, _ in versions.CONVERSIONS:
        assert text in GUIDE.partition(f"Before {since}:")[2]


def test_links_have_a_target() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    links = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert links - set(anchors) == set()
    assert all(anchors.count(link) == 1 for link in links)
    assert len(links) > 20


def test_introduction_has_the_current_numbers() -> None:
    head = TEXT.partition("## Queries")[0]
    threshold = FindingSettings()
    assert threshold.min_severity is enums.Severity.HIGH
    assert f"of severity {threshold.min_severity.caption} or more" in head
    assert threshold.packets == 10
    assert "at the tenth packet of severity Medium" in head
    within_s = scans.WITHIN_NS // 1_000_000_000
    assert f"tries {scans.FLOWS} flows within {within_s} s" in head
    assert f"{report_schedule.OVER_NS // 1_000_000_000} s without a packet" in head
    assert incidents.LATEST == 10
    assert "at\n  most ten." in head
    assert [uid for uid in CLASSES if f"| {uid} " not in head] == []


def test_page_is_updated(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"head\n{BEGIN}\nold\n{END}\ntail\n")
    for _ in range(2):
        subprocess.run([*_COMMAND, page], check=True, cwd=ROOT)
        assert page.read_text() == f"head\n{BEGIN}\n\n{GUIDE}\n{END}\ntail\n"


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}\n{BEGIN}"])
def test_page_without_markers_is_not_changed(tmp_path: Path, page: str) -> None:
    with pytest.raises(UsageError, match="has no field guide"):
        with_current_guide(page)
    path = tmp_path / "page.md"
    path.write_text(page)
    done = subprocess.run(
        [*_COMMAND, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert path.read_text() == page
