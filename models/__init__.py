"""Where models come from: one file per kind of source, and the zoo."""
