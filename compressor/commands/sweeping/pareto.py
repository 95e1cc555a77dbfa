"""Which points of a sweep are worth having: those that no other one beats at both accuracy and cost."""

from collections.abc import Callable, Sequence

from compressor.commands.sweeping.point import Point

Cost = Callable[[Point], float | None]

COSTS: dict[str, Cost] = {
    "non-zero weights": lambda point: point.nonzero or None,
    "time, dense = 1": lambda point: point.time_share,
    "zipped file": lambda point: point.zipped or None,
}
"""What accuracy is bought with; less is better."""


def front(points: Sequence[Point], cost: Cost) -> list[Point]:
    """The points that no other one beats: cheaper at the same score, or better at the same cost. Cheapest first.

    Points that cost the same and score the same are all there; points without score or cost are not.
    """
    known = [point for point in points if cost(point) is not None and point.is_scored]
    best: list[Point] = []
    for point in sorted(known, key=lambda one: (cost(one) or 0.0, -_goodness(one))):
        if not best or _rank(point, cost) == _rank(best[-1], cost) or _goodness(point) > _goodness(best[-1]):
            best.append(point)
    return best


def _rank(point: Point, cost: Cost) -> tuple[float | None, float]:
    return cost(point), _goodness(point)


def _goodness(point: Point) -> float:
    assert point.value is not None  # `front` leaves out what has no score
    return point.value if point.higher_is_better else -point.value
