"""What can go wrong, as a tree.

    Exception
    ├── UserError            the user can fix it: one paragraph, no traceback, exit code 2
    │   ├── RecipeError          an option, pattern or recipe that cannot be read or cannot be met
    │   ├── SourceError          a model that cannot be found, read or lowered
    │   ├── DataError            calibration or evaluation data that cannot be used
    │   ├── BackendError         a runtime that is missing or cannot build this model
    │   │   ├── NotInstalledError    its libraries are not installed here
    │   │   ├── NoDeviceError        the device that it needs is not here
    │   │   ├── ParseError           it cannot read the file; says at which node
    │   │   └── BuildError           it has read the file, and cannot build it; says what its log ends with
    │   └── OutputError          the output folder cannot be written
    └── InternalError        a promise of our own code is broken: traceback, exit code 70

Every message says what failed, what was found, and what to type next.
"""


class UserError(Exception):
    """Something the user can fix; printed as `what`, then `found`, then `try`.

    what: one sentence naming the thing that failed.
    found: what was there instead (optional).
    hint: the command or option to type next (optional).
    """

    def __init__(self, what: str, found: str | None = None, hint: str | None = None):
        self.what, self.found, self.hint = what, found, hint
        lines = [what]
        if found:
            lines.append(f"  found: {found}")
        if hint:
            lines.append(f"  try: {hint}")
        super().__init__("\n".join(lines))


class RecipeError(UserError):
    """An option, pattern or recipe that cannot be read or cannot be met."""


class SourceError(UserError):
    """A model that cannot be found, read or lowered to a graph."""


class DataError(UserError):
    """Calibration or evaluation data that cannot be used."""


class BackendError(UserError):
    """A runtime that is missing, or that cannot build this model."""


class NotInstalledError(BackendError):
    """A runtime whose libraries are not installed here."""


class NoDeviceError(BackendError):
    """A runtime whose device is not here."""


class ParseError(BackendError):
    """A file that the runtime cannot read.

    node: the name of the first node it stumbled over, or "".
    """

    def __init__(self, what: str, found: str | None = None, hint: str | None = None, node: str = ""):
        super().__init__(what, found, hint)
        self.node = node


class BuildError(BackendError):
    """A file that the runtime has read and cannot build."""


class OutputError(UserError):
    """The output folder cannot be written."""


class InternalError(Exception):
    """A promise of our own code is broken; never the user's fault."""
