"""Documentation: links, generated pages, examples of configuration, and the site."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from jsonschema import Draft202012Validator

from ocsf_nft import config
from tests.cli import forked

_ROOT: Final = Path(__file__).parents[2]
_PAGES: Final = sorted(
    path
    for path in (*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md"), *_ROOT.glob("deploy/**/*.md"))
    if "site-packages" not in path.parts
)
_FENCED: Final = re.compile(
    r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_COMMENT: Final = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK: Final = re.compile(r"\]\((?P<target>[^()\s]+)\)")
_HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _prose(page: Path) -> str:
    return _COMMENT.sub("", _FENCED.sub("", _text(page)))


def _anchors(page: Path) -> set[str]:
    """Return the anchors that sites for code, and MyST, give to the headings of a page."""
    titles = _HEADING.findall(_prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and anchor not in _anchors(to)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"\b(?:tests|ocsf_nft|bench)/[\w/]+\.py\b", _text(page)))
    assert [name for name in named if "NAME" not in name and not (_ROOT / name).exists()] == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_files_of_deploy_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/.-])deploy/[\w./-]*\w", _text(page)))
    assert [name for name in named if not (_ROOT / name).exists()] == []


def test_units_that_a_guide_names_exist() -> None:
    units = {path.name for path in (_ROOT / "deploy" / "systemd").glob("*.service")}
    for guide in ("docs/how-to/systemd.md", "deploy/systemd/README.md"):
        assert set(re.findall(r"\bocsf-nft[\w-]*\.service\b", _text(_ROOT / guide))) == units


def _examples() -> list[tuple[str, str]]:
    return [
        (f"{page.relative_to(_ROOT)} {number}", found["text"])
        for page in _PAGES
        if page.is_relative_to(_ROOT / "docs")
        for number, found in enumerate(_FENCED.finditer(_text(page)))
        if found["language"] == "toml"
    ]


@pytest.mark.parametrize(("example", "text"), _examples(), ids=[name for name, _ in _examples()])
def test_configuration_of_a_page_is_valid(tmp_path: Path, example: str, text: str) -> None:
    file = tmp_path / "ocsf-nft.toml"
    watched = '[[sandbox]]\nname = "agent"\n'
    # A part of a file: what a page shows belongs to a sandbox.
    file.write_text(text if "[[sandbox]]" in text else f"{text}\n{watched}", encoding="utf-8")
    assert config.load(file).sandbox, example


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    """Return a validator for the JSON Schema that `ocsf-nft config --schema` prints."""
    return Draft202012Validator(orjson.loads(forked.run("config", "--schema", check=True).stdout))


@pytest.mark.parametrize(("place", "text"), _examples(), ids=[name for name, _ in _examples()])
def test_configuration_of_a_page_fits_the_printed_schema(
    schema: Draft202012Validator, place: str, text: str
) -> None:
    found = tomllib.loads(text)
    assert [error.message for error in schema.iter_errors(found)] == [], place
    spoilt = found | {"no_such_key": 1}
    assert not schema.is_valid(spoilt)


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("`[[sandbox]]`", "SandboxConfig"),
        ("`[sandbox.container]`", "ContainerConfig"),
        ("`[[attach]]`", "MatchConfig"),
        ("`[store]`", "StoreConfig"),
        ("`[attribution]`", "AttributionConfig"),
        ("`[[severity]]`", "SeverityConfig"),
        ("`[finding]`", "FindingConfig"),
        ("`[dns_tunnel]`", "DnsTunnelConfig"),
        ("`[events]`", "EventsConfig"),
        ("`[redaction]`", "RedactionConfig"),
        ("`[[prefix]]`", "PrefixConfig"),
        ("`[identity]`", "IdentityConfig"),
    ],
)
def test_reference_of_the_configuration_has_each_key(
    schema: Draft202012Validator, heading: str, table: str
) -> None:
    text = _text(_ROOT / "docs/reference/configuration.md")
    _, _, section = text.partition(f"\n## {heading}\n")
    section, _, _ = section.partition("\n## ")
    named = set(re.findall(r"^\| `(\w+)` \||^`\[\w+\.(\w+)\]`:$", section, re.MULTILINE))
    whole: Any = schema.schema
    keys = set(whole["$defs"][table]["properties"])
    assert keys - {name for pair in named for name in pair} == set()


def test_page_about_the_rollout_has_the_severity_of_a_permissive_fence() -> None:
    event = orjson.loads((_ROOT / "tests/golden/events/the-fence-is-permissive.json").read_bytes())
    text = " ".join(_prose(_ROOT / "docs/how-to/permissive-rollout.md").split())
    assert f"has the state *{event['state']}*, with severity {event['severity']}." in text


def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", _ROOT / "docs", tmp_path],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "how-to/runbook/index.html").is_file()
