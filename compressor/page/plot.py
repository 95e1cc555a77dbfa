"""What every picture of the page comes as."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Plot:
    """A picture, its heading, and what it shows in a sentence or two."""

    title: str
    text: str
    picture: Markup
