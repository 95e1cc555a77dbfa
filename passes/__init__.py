"""Transformations: one pass per file, and the mathematics they stand on in files that know no graph."""
