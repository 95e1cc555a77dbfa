import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import RecipeError
from compressor.pattern import NM, Ratio, parse_pattern

nms = st.integers(2, 9999).flatmap(lambda m: st.builds(NM, st.integers(1, m - 1), st.just(m)))
ratios = st.builds(Ratio, st.floats(0, 1, exclude_min=True, exclude_max=True))


@given(nms | ratios)
def test_every_pattern_parses_its_own_print(pattern):
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "pattern", "printed", "sparsity"),
    [
        ("2:4", NM(2, 4), "2:4", 0.5),
        ("1:4", NM(1, 4), "1:4", 0.75),
        (" 4:8 ", NM(4, 8), "4:8", 0.5),
        ("0.5", Ratio(0.5), "0.5", 0.5),
        ("50%", Ratio(0.5), "0.5", 0.5),
        ("62.5 %", Ratio(0.625), "0.625", 0.625),
        (".7", Ratio(0.7), "0.7", 0.7),
    ],
)
def test_reads_what_people_write(text, pattern, printed, sparsity):
    parsed = parse_pattern(text)
    assert parsed == pattern
    assert str(parsed) == printed
    assert parsed.sparsity == sparsity


@pytest.mark.parametrize(
    "text",
    [
        "4:4",
        "0:4",
        "5:4",
        "1.5",
        "abc",
        "0",
        "",
        "1",
        "100%",
        "-0.5",
        "nan",
        "inf",
        "2:4:8",
        "2:",
        "50%%",
        "-1:4",
    ],
)
def test_refuses_an_impossible_pattern_and_says_what_is_possible(text):
    with pytest.raises(RecipeError) as caught:
        parse_pattern(text)
    assert caught.value.found
    assert caught.value.hint == "2:4 keeps 2 of every 4 weights; 0.5 removes half of them"


def test_a_pattern_made_in_code_is_checked_too():
    with pytest.raises(RecipeError, match="4:4"):
        NM(4, 4)
    with pytest.raises(RecipeError, match=r"1\.5"):
        Ratio(1.5)


def test_reading_patterns_does_not_load_torch():
    code = "import compressor.pattern, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
