"""What COMPRESS_DEBUG shows on standard error; it changes no result.

1   the traceback of a user's mistake; each stage and pass with its seconds
2   also every weight that a pass left or refused, with the reason
3   also what each pass changed in the graph, as a diff
"""

import os
import sys

VARIABLE = "COMPRESS_DEBUG"
TRACEBACK, STEPS, SITES, DIFFS = 1, 1, 2, 3


def level() -> int:
    """The level that is set: 0 when none is, 1 for anything that is no number."""
    text = os.environ.get(VARIABLE, "").strip()
    return int(text) if text.isdigit() else int(bool(text))


def note(least: int, text: str) -> None:
    """A line on standard error from that level on."""
    if level() >= least:
        print(text, file=sys.stderr)
