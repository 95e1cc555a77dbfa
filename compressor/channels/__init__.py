"""Channels and blocks that can be removed: which belong together, and the surgery."""
