"""Conversion of kernel log files to OCSF events, as ``ocsf-nft convert`` does it."""
