"""`python -m compressor.cli` is `compress`."""

from compressor.cli.entry import main

main()
