from __future__ import annotations

from pathlib import Path

import pytest

from ocsf_nft.control_request import ControlSocket
from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.oci import settings as module
from ocsf_nft.oci.settings import settings


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "FILE", str(tmp_path / "oci.toml"))


def test_defaults() -> None:
    found = settings({})
    assert Path(found.runtime).name == "runc"
    assert found.service == ControlSocket("/run/ocsf-nft/control.sock", 15.0)


def test_options_override_the_default_file(tmp_path: Path) -> None:
    (tmp_path / "oci.toml").write_text(
        'runtime = "/bin/true"\ncontrol = "/a"\ntimeout = 2\n', encoding="ascii"
    )
    assert settings({}).service == ControlSocket("/a", 2.0)
    found = settings({"control": "/b", "timeout": "0.5"})
    assert (found.runtime, found.service) == ("/bin/true", ControlSocket("/b", 0.5))
    assert settings(_options(found.as_options())) == found


def _options(arguments: list[str]) -> dict[str, str]:
    return dict(each.removeprefix("--ocsf-nft-").split("=", 1) for each in arguments)


def test_another_file_must_exist(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    with pytest.raises(AbsentError, match="does not exist"):
        settings({"config": str(other)})
    other.write_text('control = "/c"', encoding="ascii")
    assert settings({"config": str(other)}).service.path == "/c"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("x", "is not TOML"),
        ("x = 1", 'no setting "x"'),
        ("runtime = 1", "runtime .* must be a text"),
        ('control = ""', "control .* must be a text"),
        ("timeout = 0", "number of seconds"),
        ("timeout = 601", "number of seconds"),
        ('timeout = "x"', "number of seconds"),
        ("timeout = []", "number of seconds"),
        ("timeout = nan", "number of seconds"),
        pytest.param(f"timeout = {'9' * 400}", "number of seconds", id="too large for a float"),
        pytest.param(f"x = {'[' * 10_000}", "is not TOML", id="nested too deeply"),
    ],
)
def test_wrong_file_is_an_error(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "oci.toml").write_text(content, encoding="ascii")
    with pytest.raises(UsageError, match=sentence):
        settings({})


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="can't be read"):
        settings({"config": str(tmp_path)})


def test_wrapper_that_is_installed_as_runc_does_not_call_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    (tmp_path / "first/runc").symlink_to("/bin/true")
    (tmp_path / "second/runc").symlink_to("/bin/false")
    monkeypatch.setattr(module, "_FOLDERS", (f"{tmp_path}/first", f"{tmp_path}/second"))
    monkeypatch.setattr("sys.argv", [f"{tmp_path}/first/runc"])
    assert settings({}).runtime == f"{tmp_path}/second/runc"
    with pytest.raises(AbsentError, match="is not installed"):
        settings({"runtime": "/bin/true"})


@pytest.mark.parametrize("name", ["no-such-runtime", "/no/such/runtime", "/"])
def test_missing_runtime_is_an_error(name: str) -> None:
    with pytest.raises(AbsentError, match="is not installed"):
        settings({"runtime": name})
