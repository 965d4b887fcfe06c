"""Table ``[identity]``, and the tenant of a sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from ocsf_nft.config import Config, parse
from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.context import CloudAccount, Host

_CLOUD = {"provider": "aws", "account_uid": "1", "account_name": "a", "region": "r", "zone": "z"}


def config(**found: Any) -> Config:
    return parse({"control": "/run/x.sock", **found}, where="x")


def test_identity_of_the_file_is_that_of_the_host() -> None:
    identity = {"tenant_uid": "t", "environment": "e", "instance_uid": "i", "cloud": _CLOUD}
    found = config(identity=identity).identity.of(Host(hostname="h", kernel_release="6.9"))
    assert found == Host(
        hostname="h",
        kernel_release="6.9",
        tenant_uid="t",
        environment="e",
        instance_uid="i",
        cloud=CloudAccount("aws", "1", "a", "r", "z"),
    )


def test_host_without_an_identity_stays_as_it_is() -> None:
    host = Host(hostname="h")
    assert config().identity.of(host) == host


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ({"tenant_uid": ""}, "identity.tenant_uid"),
        ({"environment": "x" * 65}, "identity.environment"),
        ({"instance_uid": 7}, "identity.instance_uid"),
        ({"tenant": "x"}, "identity.tenant"),
        ({"cloud": {}}, "identity.cloud.provider"),
        ({"cloud": {"provider": "x" * 257}}, "identity.cloud.provider"),
        ({"cloud": {"provider": "aws", "account_name": "x"}}, "without an account_uid: give both"),
    ],
)
def test_wrong_identity_is_one_sentence(identity: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(identity=identity)
    assert expected in str(caught.value)


def test_tenant_is_a_key_of_a_sandbox_and_of_a_policy_of_containers() -> None:
    policy = {"proxy": ["10.0.0.1:3128"], "tenant_uid": "acme"}
    found = config(
        sandbox=[{"name": "a", "install": True, **policy}], attach=[{"name": "b", **policy}]
    )
    assert found.sandbox[0].tenant_uid == "acme"
    assert found.attach[0].policy()["tenant_uid"] == "acme"
