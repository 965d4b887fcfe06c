"""The kernel's log text (net/netfilter/nf_log_syslog.c), read by position."""

from ocsf_nft.sources.text.line import claims, read

__all__ = ["claims", "read"]
