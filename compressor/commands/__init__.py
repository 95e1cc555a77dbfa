"""What commands other than `export` do: one module each, for Python as for the command line."""
