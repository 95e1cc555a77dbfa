import dataclasses
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import RecipeError
from compressor.spec import build, format_spec, parse_specs


@dataclass(frozen=True)
class Options:
    pattern: str
    share: float = 0.5
    steps: int = 10
    is_strict: bool = False
    limit: float | None = None
    targets: tuple[str, ...] = ("*",)
    widths: tuple[int, ...] = ()
    derived: int = field(default=0, init=False)


def read(text: str) -> Options:
    [(name, options)] = parse_specs(text)
    return build(Options, options, name)


floats = st.floats(allow_nan=False, allow_infinity=False)
options = st.builds(
    Options,
    pattern=st.text(),
    share=floats,
    steps=st.integers(),
    is_strict=st.booleans(),
    limit=st.none() | floats,
    targets=st.lists(st.text()).map(tuple),
    widths=st.lists(st.integers()).map(tuple),
)


@given(options)
def test_every_options_object_parses_its_own_print(one):
    assert read(format_spec("thin", one)) == one


@given(st.lists(options, min_size=1, max_size=4))
def test_a_pipeline_parses_its_own_print(several):
    text = " | ".join(format_spec("thin", one) for one in several)
    assert [build(Options, values, name) for name, values in parse_specs(text)] == several


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Options("2:4"), "thin{pattern=2:4}"),
        (Options("2:4", steps=3, is_strict=True), "thin{pattern=2:4,steps=3,is_strict=true}"),
        (Options("a b"), 'thin{pattern="a b"}'),
        (Options(""), 'thin{pattern=""}'),
        (Options("true", limit=1e-07), 'thin{pattern="true",limit=1e-07}'),
        (Options("x", targets=("h.*", "a,b"), widths=(1, 2)), 'thin{pattern=x,targets=[h.*,"a,b"],widths=[1,2]}'),
        (Options("x", targets=()), "thin{pattern=x,targets=[]}"),
    ],
)
def test_prints_only_what_differs_from_the_defaults(one, text):
    assert format_spec("thin", one) == text
    assert read(text) == one


def test_a_name_alone_stands_for_the_defaults():
    @dataclass(frozen=True)
    class Nothing:
        x: int = 1

    assert format_spec("rest", Nothing()) == "rest"
    assert parse_specs("rest") == parse_specs("rest{}") == [("rest", {})]


def test_space_between_tokens_means_nothing():
    assert parse_specs(" a { x = 1 , y = [ p , q ] } | b ") == [("a", {"x": "1", "y": ["p", "q"]}), ("b", {})]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "the end where a word should be"),
        ("a{x=1", "the end where '}' should be"),
        ("a{x}", "'}' where '=' should be"),
        ("a{x=}", "'}' where a word should be"),
        ("a{x=1 y=2}", "'y' where ',' should be"),
        ("a{x=1,x=2}", "'x' twice"),
        ("a{x=[1,2}", "'}' where ',' should be"),
        ("a b", "'b' where '|' should be"),
        ("a |", "the end where a word should be"),
        ('a{x="1}', "character 5: '\"1}'"),
        (r'a{x="\q"}', r'"\q", which is no JSON string'),
        ('"a b"{x=1}', "'\"a b\"' where a bare word should be"),
    ],
)
def test_text_that_cannot_be_read_says_where_it_goes_wrong(text, found):
    with pytest.raises(RecipeError) as caught:
        parse_specs(text)
    assert caught.value.found == found
    assert caught.value.hint == "a pass is written name{option=value,list=[a,b]}"


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(RecipeError, match="unknown option of thin 'patern'") as caught:
        read("thin{patern=2:4}")
    assert caught.value.hint == "pattern"


def test_an_option_that_is_not_to_be_set_is_unknown():
    with pytest.raises(RecipeError, match="unknown option of thin 'derived'"):
        read("thin{pattern=x,derived=1}")


def test_a_missing_option_is_named():
    with pytest.raises(RecipeError, match="thin needs pattern") as caught:
        read("thin")
    assert caught.value.hint == "thin{pattern=...}"


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("steps", "3", 3),
        ("steps", 3, 3),
        ("steps", 3.0, 3),
        ("share", 1, 1.0),
        ("share", "1e-3", 0.001),
        ("pattern", 0.5, "0.5"),
        ("limit", None, None),
        ("limit", "2", 2.0),
        ("targets", "h.*", ("h.*",)),
        ("targets", ["a", "b"], ("a", "b")),
        ("widths", ["1", 2], (1, 2)),
        ("is_strict", True, True),
    ],
)
def test_raw_values_become_what_the_field_declares(key, raw, value):
    built = build(Options, {"pattern": "x", key: raw}, "thin")
    assert getattr(built, key) == value
    assert type(getattr(built, key)) is type(value)


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ("steps", "three"),
        ("steps", "1.5"),
        ("steps", 1.5),
        ("steps", True),
        ("steps", None),
        ("steps", [3]),
        ("share", "nan"),
        ("share", float("inf")),
        ("is_strict", "yes"),
        ("is_strict", 1),
        ("pattern", None),
        ("pattern", True),
        ("pattern", {"n": 2}),
        ("widths", ["a"]),
        ("targets", None),
    ],
)
def test_a_value_of_another_type_is_refused_by_option_name(key, raw):
    with pytest.raises(RecipeError, match=rf"thin\.{key} cannot be"):
        build(Options, {"pattern": "x", key: raw}, "thin")


def test_the_refusal_names_the_type_in_plain_words():
    for key, words in {"steps": "an integer", "share": "a number", "is_strict": "true or false"}.items():
        with pytest.raises(RecipeError) as caught:
            build(Options, {"pattern": "x", key: "?"}, "thin")
        assert caught.value.hint == words


def test_fields_without_a_default_are_printed_always():
    fields = [f.name for f in dataclasses.fields(Options) if f.default is dataclasses.MISSING and f.init]
    assert all(f"{name}=" in format_spec("thin", Options("2:4")) for name in fields)
