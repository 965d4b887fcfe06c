"""The kernel's log text (net/netfilter/nf_log_syslog.c), read by position."""

from ocsf_nft.sources.text.line import claims, possible_prefixes, read

__all__ = ["claims", "possible_prefixes", "read"]
