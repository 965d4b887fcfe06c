from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme

from ocsf_nft.delivery.tls import Tls
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path


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
