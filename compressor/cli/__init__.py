"""The command line: commands, and what a person reads of them."""
