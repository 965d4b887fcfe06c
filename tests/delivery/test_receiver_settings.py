"""Settings of connections to receivers: secrets, TLS, and the address of HTTP."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme

from ocsf_nft.delivery.receiver_settings import Receiver, Secret, Tls
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path


def test_secret_file_is_read_again_each_time_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    secret = Secret("file", str(path))
    assert secret.read() == "first"
    path.write_text(" second ünd \n\n")
    assert secret.read() == " second ünd"


def test_secret_file_of_65536_bytes_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 65_536)
    assert Secret("file", str(path)).read() == "x" * 65_536


def test_secret_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t0p")
    assert Secret("environment", "TOKEN").read() == "t0p"


def test_secret_is_read_from_a_systemd_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "hec").write_text("t0p\n")
    assert Secret("credential", "hec").read() == "t0p"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"t0ps3cret\r\nX-Other: 1", "is more than one line"),
        (b"t0ps3cret\0", "is more than one line"),
        (b"t0ps3cret\xff", "is not text in UTF-8"),
        (b"t0ps3cret" + b"x" * 65_528, "has more than 65536 bytes"),
    ],
)
def test_invalid_secret_is_an_error_that_does_not_contain_it(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeliveryError) as refused:
        Secret("file", str(path)).read()
    assert sentence in str(refused.value)
    assert str(path) in str(refused.value)
    assert "t0ps3cret" not in str(refused.value)


def test_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(DeliveryError, match="the environment has no TOKEN"):
        Secret("environment", "TOKEN").read()
    with pytest.raises(DeliveryError, match="no credential hec: give the unit LoadCredential="):
        Secret("credential", "hec").read()


def test_certificate_and_name_of_a_receiver_are_always_verified(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    for tls in (Tls(), Tls(ca=ca)):
        context = tls.context()
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_own_certificate_is_read(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("client.example")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    Tls(certificate=certificate, key=key).context()
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    Tls(certificate=certificate).context()


@pytest.mark.parametrize(
    ("kind", "content", "sentence"),
    [
        ("ca", None, "No such file or directory"),
        ("ca", "no certificate", "TLS can't use"),
        ("certificate", None, "No such file or directory"),
        ("certificate", "no certificate", "TLS can't use"),
    ],
)
def test_invalid_certificate_file_is_named_in_the_error(
    tmp_path: Path, kind: str, content: str | None, sentence: str
) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    tls = Tls(ca=path) if kind == "ca" else Tls(certificate=path)
    with pytest.raises(DeliveryError) as refused:
        tls.context()
    assert sentence in str(refused.value)
    assert str(path) in str(refused.value)


def test_key_with_a_password_is_refused_without_a_prompt(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("client.example")
    certificate, key, locked = (tmp_path / name for name in ("cert.pem", "key.pem", "locked.pem"))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked],
        check=True,
    )
    with pytest.raises(DeliveryError, match="the key has a password: give a key without one"):
        Tls(certificate=certificate, key=locked).context()


def test_http_receiver_is_at_the_port_of_its_url_or_of_its_scheme() -> None:
    for url, proxy, address in (
        ("http://siem.example/in", None, ("siem.example", 80)),
        ("https://siem.example/in", None, ("siem.example", 443)),
        ("https://siem.example:8088/in", None, ("siem.example", 8088)),
        ("https://[2001:db8::7]/in", None, ("2001:db8::7", 443)),
        ("https://siem.example/in", "http://proxy.example", ("proxy.example", 80)),
        ("http://siem.example:8088/in", "http://proxy.example:3128", ("proxy.example", 3128)),
    ):
        assert Receiver(url=url, proxy=proxy).next_hop == address
