import itertools

import pytest
import torch

from compressor.proof import latency
from compressor.proof.latency import WARM_UP, compare


class Clock:
    """Time that passes only while a run works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def run(self, name: str, *milliseconds: float):
        """A run whose calls take these times, over and over; the first of them is the first call after warm-up."""
        times = itertools.chain([1000.0] * WARM_UP, itertools.cycle(milliseconds))

        def call(feeds):
            self.calls.append(name)
            self.now += next(times) / 1000
            return {}

        return call


@pytest.fixture
def clock(monkeypatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: one.now)
    return one


def test_times_are_milliseconds_and_ratios_say_how_many_times_faster(clock):
    runs = {"dense": clock.run("dense", 8.0), "sparse": clock.run("sparse", 2.0)}
    found = compare(runs, "prefill", {}, seconds=0.1, rounds=(10, 200))
    assert found.workload == "prefill"
    assert found.latency["dense"].p50 == pytest.approx(8)
    assert found.latency["sparse"].p90 == pytest.approx(2)
    assert found.ratio == pytest.approx({"dense": 1, "sparse": 4})
    assert found.spread["sparse"] == pytest.approx((4, 4))


@pytest.mark.parametrize(("seconds", "n"), [(0.1, 10), (0.2, 20), (100.0, 50), (0.0, 10)])
def test_as_many_rounds_as_fit_the_time_within_bounds(clock, seconds, n):
    found = compare({"a": clock.run("a", 10.0)}, "x", {}, seconds=seconds + 1e-9, rounds=(10, 50))
    assert found.latency["a"].n == n
    assert len(clock.calls) == WARM_UP + 1 + n


def test_the_first_calls_are_thrown_away(clock):
    found = compare({"a": clock.run("a", 5.0)}, "x", {}, seconds=0.05)
    assert found.latency["a"].p90 == pytest.approx(5)


def test_runs_take_turns_so_that_none_is_always_second(clock):
    runs = {name: clock.run(name, 5.0) for name in ("a", "b")}
    compare(runs, "x", {}, seconds=0.0, rounds=(4, 4))
    assert "".join(clock.calls[-8:]) == "abbaabba"


@pytest.mark.parametrize(
    ("a", "b", "ratio", "spread"),
    [
        ((10.0, 20.0), (5.0, 10.0), 2.0, (2.0, 2.0)),  # a noise that both hear cancels
        ((10.0,), (5.0, 10.0), 1.5, (1.0, 2.0)),
    ],
)
def test_ratios_are_taken_round_by_round(clock, a, b, ratio, spread):
    found = compare({"a": clock.run("a", *a), "b": clock.run("b", *b)}, "x", {}, seconds=0.0, rounds=(12, 12))
    assert found.ratio["b"] == pytest.approx(ratio)
    assert found.spread["b"] == pytest.approx(spread)


def test_every_run_is_given_the_same_inputs():
    feeds = {"x": torch.ones(2)}
    seen = []

    def run(given):
        seen.append(given)
        return {}

    compare({"a": run, "b": run}, "x", feeds, seconds=0.0, rounds=(3, 3))
    assert len(seen) == 2 * (WARM_UP + 1 + 3)
    assert all(given is feeds for given in seen)
