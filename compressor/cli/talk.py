"""What models say, printed while they say it."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from compressor.commands.generating import Generated
from compressor.layout import facts


class Talk:
    """Prints what models say while they say it."""

    def __init__(self, console: Console, prompt: str, verbose: bool = False):
        self._console, self._prompt, self._verbose, self._by = console, prompt, verbose, ""

    def hear(self, by: str, piece: str) -> None:
        if by != self._by:
            self._console.print(Text.assemble("\n\n" if self._by else "", (by, "bold")))
            self._console.print(Text(self._prompt, style="dim"), end="", soft_wrap=True)
            self._by = by
        self._console.print(Text(piece), end="", soft_wrap=True)

    def end(self, said: Generated) -> None:
        """How fast each was, and how far they agree."""
        made = facts()
        for one in said.said:
            rate = f", then {one.per_second:.0f} tokens per second" if one.per_second else ""
            text = f"{len(one.tokens)} tokens, the first after {one.first_ms:.0f} ms{rate}"
            made.add_row(one.by, f"{one.runtime}: {text}")
        if said.same is not None:
            least = min(len(one.tokens) for one in said.said)
            made.add_row("the same", f"the first {said.same} of {least} tokens")
        if self._verbose:
            made.add_row(
                "drawn", f"at temperature {said.temperature:g}, seed {said.seed}" if said.temperature else "never"
            )
            made.add_row("prompt", f"{len(said.prompt_tokens)} tokens: {_ids(said.prompt_tokens)}")
            for one in said.said:
                made.add_row(f"{one.by}'s", f"{_ids(one.tokens)}{', then its end' if one.ended else ''}")
        self._console.print("\n")
        self._console.print(made)


def _ids(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


class Murmur:
    """Prints what they say, and nothing about it."""

    def __init__(self, console: Console):
        self._console = console

    def hear(self, by: str, piece: str) -> None:
        self._console.print(Text(piece), end="", soft_wrap=True)

    def end(self, said: Generated) -> None:
        self._console.print()
