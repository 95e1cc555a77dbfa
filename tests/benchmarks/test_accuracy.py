"""The tables of accuracy: of draws a median and a spread, and in the text what the results say."""

import json

from benchmarks import accuracy


def result(value: float, drop: float, **more: object) -> dict[str, object]:
    made = {"metric": "perplexity", "dense": 60.0, "value": value, "drop": drop, "error": 0.1, "seconds": 9.6}
    return made | {"scored": "3 windows"} | more


def test_a_cell_has_the_median_the_spread_and_the_seconds_and_says_of_how_many_draws(capsys):
    draws = {f"gpt2-mini | fast | 2:4 | {seed}": result(61 + seed, 1.0 + seed) for seed in range(3)}
    ones = {
        "gpt2-mini | fast | 0.5 | 0": result(60.5, 0.5),
        "gpt2-mini | magnitude | 2:4 | 0": result(70.0, 9.0),
        "gpt2-mini | magnitude | 2:4 | 1": result(70.0, 9.0),
        "gpt2-mini | magnitude | 2:4 | 2": result(70.0, 9.0),
    }
    accuracy.print_tables(draws | ones)
    assert capsys.readouterr().out.splitlines()[5:] == [
        "| method | 2:4 | s | 0.5 | s |",
        "| --- | --- | --- | --- | --- |",
        "| magnitude | 70.00, +9.00 % | 10 |  |  |",
        "| fast | 62.00, +2.00 % (+1.00 to +3.00) | 10 | 60.50, +0.50 % (± 0.10, n=1) | 10 |",
    ]


def test_the_tables_in_the_text_are_those_of_the_results(capsys):
    accuracy.print_tables(json.loads(accuracy.RESULTS.read_text()))
    text = accuracy.RESULTS.with_suffix(".md").read_text()
    for line in filter(None, capsys.readouterr().out.splitlines()):
        assert f"\n{line}\n" in text
