"""Entry point of ``python -m ocsf_nft``, which runs the command line."""

from ocsf_nft.cli import main

main()
