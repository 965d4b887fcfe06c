"""Command line of ocsf-nft, as ``python -m ocsf_nft``."""

from ocsf_nft.cli import main

main()
