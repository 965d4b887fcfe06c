"""The page with the programs of supervisors."""

from __future__ import annotations

from tests.docs.commands import ROOT, parse


def test_page_shows_the_examples_as_they_are() -> None:
    page = ROOT / "docs/how-to/many-sandboxes.md"
    blocks = {block.text for block in parse(page.read_text(encoding="utf-8"), page.name).blocks}
    examples = sorted((ROOT / "examples").iterdir())
    assert [path.name for path in examples] == ["supervisor.py", "supervisor.sh"]
    for path in examples:
        assert path.read_text(encoding="utf-8") in blocks, f"copy {path.name} into the page"
