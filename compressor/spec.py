"""Options as data: a frozen dataclass prints as `name{field=value,...}` and parses back to an equal object.

Only fields that differ from their default are printed. A value is a bare word, a JSON string where a bare word would
be ambiguous, or a list `[a,b]`. The same text serves the command line, the report, a bug report and a test.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from compressor.errors import RecipeError
from compressor.registry import unknown

_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<mark>[{}\[\],=|])|(?P<word>[^\s{}\[\],=|"]+))')
_BARE = re.compile(r'[^\s{}\[\],=|"]+')


def format_spec(name: str, options: Any) -> str:
    """`name{field=value,...}` of a dataclass instance, defaults left out."""
    fields = [
        f"{field.name}={_format(getattr(options, field.name))}"
        for field in dataclasses.fields(options)
        if field.init and getattr(options, field.name) != _default(field)
    ]
    return f"{name}{{{','.join(fields)}}}" if fields else name


def parse_specs(text: str) -> list[tuple[str, dict[str, Any]]]:
    """`a{x=1} | b{y=[p,q]}` -> [("a", {"x": "1"}), ("b", {"y": ["p", "q"]})]. Raises RecipeError."""
    tokens = _tokens(text)
    specs = [_spec(tokens, text)]
    while tokens:
        _expect(tokens, "|", text)
        specs.append(_spec(tokens, text))
    return specs


def build(cls: type, options: Mapping[str, Any], what: str) -> Any:
    """An instance of a dataclass from raw values (text or YAML). Unknown keys name the nearest known one."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    for key in options:
        if key not in fields:
            raise unknown(f"option of {what}", key, fields)
    missing = [name for name in required(cls) if name not in options]
    if missing:
        raise RecipeError(f"{what} needs {', '.join(missing)}", hint=f"{what}{{{missing[0]}=...}}")
    return cls(**{key: _coerce(value, hints[key], f"{what}.{key}") for key, value in options.items()})


def required(cls: type) -> list[str]:
    """The fields of a dataclass that have no default."""
    return [field.name for field in dataclasses.fields(cls) if field.init and _default(field) is dataclasses.MISSING]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


# *** printing ***


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(_format(item) for item in value)}]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    text = str(value)
    ambiguous = isinstance(value, str) and text in ("true", "false", "null")
    return text if _BARE.fullmatch(text) and not ambiguous else json.dumps(text)


# *** parsing ***


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if not match:
            raise _bad(text, f"character {position + 1}: {text[position : position + 10]!r}")
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


def _bad(text: str, found: str) -> RecipeError:
    return RecipeError(f"cannot read {text!r}", found=found, hint="a pass is written name{option=value,list=[a,b]}")


def _expect(tokens: list[str], mark: str, text: str) -> None:
    if tokens[:1] != [mark]:
        raise _bad(text, f"{_next(tokens)} where {mark!r} should be")
    tokens.pop(0)


def _next(tokens: list[str]) -> str:
    return repr(tokens[0]) if tokens else "the end"


def _word(tokens: list[str], text: str) -> str:
    if not tokens or tokens[0] in set("{}[],=|"):
        raise _bad(text, f"{_next(tokens)} where a word should be")
    return tokens.pop(0)


def _name(tokens: list[str], text: str) -> str:
    name = _word(tokens, text)
    if name.startswith('"'):
        raise _bad(text, f"{name!r} where a bare word should be")
    return name


def _spec(tokens: list[str], text: str) -> tuple[str, dict[str, Any]]:
    name, options = _name(tokens, text), {}
    if tokens and tokens[0] == "{":
        tokens.pop(0)
        for key, value in _sequence(tokens, "}", lambda: _pair(tokens, text), text):
            if key in options:
                raise _bad(text, f"{key!r} twice")
            options[key] = value
    return name, options


def _sequence(tokens: list[str], end: str, item: Callable[[], Any], text: str) -> list[Any]:
    items: list[Any] = []
    while tokens and tokens[0] != end:
        if items:
            _expect(tokens, ",", text)
        items.append(item())
    _expect(tokens, end, text)
    return items


def _pair(tokens: list[str], text: str) -> tuple[str, Any]:
    key = _name(tokens, text)
    _expect(tokens, "=", text)
    return key, _value(tokens, text)


def _value(tokens: list[str], text: str) -> Any:
    if tokens and tokens[0] == "[":
        tokens.pop(0)
        return _sequence(tokens, "]", lambda: _value(tokens, text), text)
    word = _word(tokens, text)
    if word.startswith('"'):
        return _unquoted(word, text)
    return {"true": True, "false": False, "null": None}.get(word, word)


def _unquoted(word: str, text: str) -> str:
    try:
        return str(json.loads(word))
    except ValueError:
        raise _bad(text, f"{word}, which is no JSON string") from None


# *** types ***

_IN_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


def _coerce(value: Any, hint: Any, what: str) -> Any:
    """A raw value as the type its field declares: str, int, float, bool, tuple[str, ...] or one of these or None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        hint = next(arg for arg in args if arg is not type(None))
        return _coerce(value, hint, what)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(item, args[0], what) for item in items)
    try:
        return _scalar(value, hint)
    except (ValueError, OverflowError):
        raise RecipeError(f"{what} cannot be {value!r}", hint=_IN_WORDS.get(hint, str(hint))) from None


def _scalar(value: Any, hint: type) -> Any:
    """Text, an integer, a number or a truth value. Raises ValueError where the value would not stay what it is."""
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) is not (hint is bool):
        raise ValueError
    read = hint(value)
    if isinstance(read, float) and not math.isfinite(read):
        raise ValueError
    if isinstance(value, float) and hint is int and read != value:
        raise ValueError
    return read
