"""Configuration table ``[identity]``: tenant, environment and cloud of the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Self, TypeAlias

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import Table
from ocsf_nft.ocsf.context import CloudAccount

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Host

_Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]


class CloudConfig(Table):
    """Cloud in which the machine runs, table ``[identity.cloud]`` in the file.

    Events have these names in the OCSF object ``cloud``. ``provider`` is a short name such as
    ``aws``, ``gcp`` or ``azure``.
    """

    provider: _Text
    """Name of the cloud provider."""
    account_uid: _Text | None = None
    """Id of the account at the provider."""
    account_name: _Text | None = None
    """Name of the account; needs account_uid."""
    region: _Text | None = None
    """Region, such as eu-central-1."""
    zone: _Text | None = None
    """Availability zone in the region."""

    @model_validator(mode="after")
    def _has_an_account(self) -> Self:
        if self.account_name is not None and self.account_uid is None:
            raise ValueError("has an account_name without an account_uid: give both")
        return self


class IdentityConfig(Table):
    """Tenant, environment and cloud of the machine, table ``[identity]`` in the file.

    Every event of `ocsf-nft run` has these names. A sandbox can have a ``tenant_uid`` of its own,
    and a label ``environment`` of its own.
    """

    tenant_uid: _Text | None = None
    """Tenant of the sandboxes that have none of their own: metadata.tenant_uid."""
    environment: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Environment, such as production: the label environment of the events."""
    instance_uid: _Text | None = None
    """Id of the machine at its cloud: device.instance_uid."""
    cloud: CloudConfig | None = None
    """Cloud in which the machine runs."""

    def of(self, host: Host) -> Host:
        """Return a machine with the tenant, the environment and the cloud of this table."""
        return replace(
            host,
            tenant_uid=self.tenant_uid,
            environment=self.environment,
            instance_uid=self.instance_uid,
            cloud=None if self.cloud is None else CloudAccount(**dict(self.cloud)),
        )
