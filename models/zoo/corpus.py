"""The text that tiny-gpt2 learns from: Python's own documentation and the docstrings of well-known libraries.

A document is a help topic, or all docstrings of one module, as installed; what is kept of it is its prose. A document
goes to the held-out side by a hash of its name, so nothing of a held-out module is ever trained on; and a training
paragraph that shares twelve words in a row with the held-out side is dropped, so that nothing is copied across either.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

PACKAGES = {
    "networkx": "networkx", "numpy": "numpy", "pandas": "pandas", "scipy": "scipy", "sklearn": "scikit-learn",
    "sympy": "sympy", "torch": "torch",
}  # fmt: skip
"""Import name -> name on the package index. All under the BSD licence; Python itself is under the PSF licence."""

HELD_OUT_PER_MILLE = 17
SHARED_WORDS = 12

_SKIPPED = re.compile(
    r"(^|/)(tests?|testing|_?vendor(ed)?|encodings|idlelib|lib2to3|site-packages|externals|_?generated)(/|$)|test_"
)
_COMMON = re.compile("a|an|and|are|as|at|be|by|for|from|if|in|is|it|not|of|on|or|that|the|this|to|when|which|with")


@dataclass(frozen=True)
class Document:
    """A module's docstrings, or a help topic. key: the name its side is chosen by."""

    key: str
    text: str

    @property
    def is_held_out(self) -> bool:
        return int(hashlib.sha256(self.key.encode()).hexdigest(), 16) % 1000 < HELD_OUT_PER_MILLE


# *** the two sides ***


def split(found: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """(training, held out): no key, no paragraph and no twelve words in a row on both sides."""
    found = list(found)
    held_out = _without_repeats([doc for doc in found if doc.is_held_out])
    forbidden = {run for doc in held_out for paragraph in _paragraphs(doc) for run in _runs(paragraph)}
    training = _without_repeats([doc for doc in found if not doc.is_held_out], forbidden)
    return training, held_out


def _without_repeats(docs: list[Document], forbidden: AbstractSet[int] = frozenset()) -> list[Document]:
    """The documents less the paragraphs met before, or sharing a run of words with `forbidden`."""
    seen: set[str] = set()
    kept = []
    for doc in docs:
        new = (part for part in dict.fromkeys(_paragraphs(doc)) if part not in seen)
        fresh = [part for part in new if _runs(part).isdisjoint(forbidden)]
        seen.update(fresh)
        if fresh:
            kept.append(Document(doc.key, "\n\n".join(fresh)))
    return kept


def _paragraphs(doc: Document) -> list[str]:
    return doc.text.split("\n\n")


def _runs(paragraph: str) -> set[int]:
    """Fingerprints of every SHARED_WORDS words in a row; of the whole paragraph where it is shorter."""
    words = re.findall(r"\w+", paragraph.lower())
    last = max(1, len(words) - SHARED_WORDS + 1)
    return {hash(tuple(words[start : start + SHARED_WORDS])) for start in range(last)}


# *** where documents come from ***


def documents() -> Iterator[Document]:
    """Every document of this environment that has prose, in a fixed order."""
    for key, raw in _sources():
        prose = "\n\n".join(part for part in unwrapped(raw) if is_prose(part))
        if prose:
            yield Document(key, prose)


def versions() -> str:
    """What the text is taken from: `Python 3.x.y, numpy 2.x, ...`."""
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES.values())
    return f"Python {platform.python_version()}, {found}"


def _sources() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    yield from ((f"topic/{name}", text) for name, text in sorted(topics.items()))
    yield from _modules(Path(sysconfig.get_paths()["stdlib"]), "python")
    for name, distribution in PACKAGES.items():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"{name} is not installed\n  try: pip install {distribution}")
        yield from _modules(Path(spec.submodule_search_locations[0]), name)


def _modules(root: Path, name: str) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root).as_posix()
        if _SKIPPED.search(where):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # templates, and the parsers' own bad examples
            continue
        yield f"{name}/{where}", "\n\n".join(_docstrings(tree))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


# *** prose ***


def unwrapped(text: str) -> list[str]:
    """Paragraphs on one line each, less headings, displayed blocks and markup."""
    text = "\n".join(_body(text.expandtabs().splitlines()))
    text = re.sub(r":[\w:]+:`~?([^`]*)`", r"\1", text)  # :func:`f` -> f
    text = re.sub(r"``?([^`]*)``?_*", r"\1", text)
    text = re.sub(r"\*\*?(\w[^*\n]*)\*\*?", r"\1", text)
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if part]


def _body(lines: list[str]) -> Iterator[str]:
    """The lines, less underlined headings and what is set apart by `::` or a directive that holds no prose."""
    block: int | None = None  # indentation of the line that opened the block
    for line, following in zip_longest(lines, lines[1:], fillvalue=""):
        depth = len(line) - len(line.lstrip())
        if block is not None and (not line.strip() or depth > block):
            continue
        block = None
        if _is_rule(line) or _is_rule(following):
            yield ""
        elif re.match(r"\s*\.\. (math|code|plot|image|figure|doctest|testcode|autosummary|table|list-table|\[)", line):
            block = depth
            yield ""
        elif re.match(r"\s*\.\. ", line):
            yield re.sub(r"\s*\.\. [\w-]+::.*", "", line)
        elif line.rstrip().endswith("::"):
            block = depth
            yield line.rstrip()[:-1] + "\n"
        else:
            yield line


def _is_rule(line: str) -> bool:
    return bool(re.fullmatch(r"\s*([-=~^*#+\"'_.])\1{2,}\s*", line))


def is_prose(paragraph: str) -> bool:
    """Sentences: not tables, code, formulas or interpreter sessions."""
    if ">>>" in paragraph or "http" in paragraph or "$" in paragraph or "\\" in paragraph:
        return False
    words = re.findall(r"[A-Za-z]+", paragraph)
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    common = sum(bool(_COMMON.fullmatch(word.lower())) for word in words)
    return len(words) >= 10 and letters > 0.85 * len(paragraph) and common > 0.2 * len(words)
