"""Parser of the kernel's log lines about packets (net/netfilter/nf_log_syslog.c)."""

from ocsf_nft.sources.text.line import is_candidate, possible_prefixes, read

__all__ = ["is_candidate", "possible_prefixes", "read"]
