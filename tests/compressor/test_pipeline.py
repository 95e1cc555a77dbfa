from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from torch import nn

from compressor import registry
from compressor.errors import InternalError, RecipeError
from compressor.graph import Graph
from compressor.pipeline import Context, Outcome, Row, choose, dump_graphs, format_pass, parse_pass, run_pipeline
from compressor.sites import Role, WeightSite
from tests.compressor.tiny import graph_of, normal


@dataclass(frozen=True)
class Drop:
    """Zero the first columns of every weight. `lies` says so without doing it; `breaks` writes NaN."""

    name: ClassVar[str] = "drop"
    needs_data: ClassVar[bool] = False
    needs_dense: ClassVar[bool] = False

    columns: int = 1
    lies: bool = False
    breaks: bool = False
    samples: int = 0

    def plan(self, graph: Graph) -> list[Row]:
        return [Row(site.name, "changed") for site in graph.sites]

    def run(self, graph: Graph, context: Context) -> Outcome:
        for site in graph.sites:
            W = site.matrix()
            W[..., : self.columns] = float("nan") if self.breaks else 0
            if not self.lies:
                site.write(W)
        return Outcome(tuple(self.plan(graph)))

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        for site in graph.sites:
            if site.matrix()[..., : self.columns].count_nonzero():
                raise InternalError(f"{site.name} is not zero")


@pytest.fixture
def registered(monkeypatch):
    """While it lasts, another package has registered the pass `drop`."""
    entry = EntryPoint("drop", f"{__name__}:Drop", "compressor.passes")
    registry.names.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    yield
    registry.names.cache_clear()


@pytest.fixture
def graph() -> Graph:
    return graph_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), normal(5, 4))


# *** running ***


@pytest.mark.usefixtures("registered")
def test_a_pass_of_another_package_is_read_and_printed_like_ours():
    one = parse_pass("drop{columns=2}")
    assert type(one).__name__ == "Drop"
    assert format_pass(one) == "drop{columns=2}"


def test_each_pass_changes_the_graph_and_reports_its_rows_and_seconds(graph):
    outcomes = run_pipeline(graph, [Drop(), Drop(columns=2)], Context())
    assert [row.site for row in outcomes[0].of("changed")] == ["0.weight", "2.weight"]
    assert not outcomes[0].of("refused")
    assert all(outcome.seconds > 0 for outcome in outcomes)
    assert all(site.matrix()[..., :2].count_nonzero() == 0 for site in graph.sites)


def test_a_pass_that_did_not_do_what_it_says_is_our_fault(graph):
    with pytest.raises(InternalError, match=r"0\.weight is not zero"):
        run_pipeline(graph, [Drop(lies=True)], Context())


def test_a_pass_that_breaks_a_weight_is_our_fault(graph):
    with pytest.raises(InternalError, match=r"0\.weight holds NaN or Inf after a pass"):
        run_pipeline(graph, [Drop(breaks=True)], Context())


def test_observers_see_the_input_and_the_graph_after_each_pass_that_holds(graph):
    seen = []

    def observe(number: int, name: str, graph: Graph) -> None:
        seen.append((number, name, [int((site.weight == 0).sum()) for site in graph.sites]))

    with pytest.raises(InternalError):
        run_pipeline(graph, [Drop(), Drop(columns=2), Drop(columns=3, lies=True)], Context(), [observe])
    assert seen == [(0, "input", [0, 0]), (1, "drop", [3, 2]), (2, "drop", [6, 4])]


def test_no_pass_is_a_pipeline_too(graph):
    assert run_pipeline(graph, [], Context()) == []


# *** choosing ***


ROLES: dict[str, Role] = {"stem": "stem", "h.0.up": "", "h.0.down": "", "h.1.up": "", "head": "head", "wte": "tied"}


def sites() -> list[WeightSite]:
    weight = torch.zeros(2, 2)
    return [WeightSite(f"{name}.weight", "linear", weight, "rows", (), role=role) for name, role in ROLES.items()]


@pytest.mark.parametrize(
    ("targets", "ignore", "named"),
    [
        (["*"], [], ["h.0.up", "h.0.down", "h.1.up"]),
        (["*", "*"], [], ["h.0.up", "h.0.down", "h.1.up"]),
        (["*"], ["h.0.*"], ["h.1.up"]),
        (["h.*.up.weight"], [], ["h.0.up", "h.1.up"]),
        (["h.*.up"], [], ["h.0.up", "h.1.up"]),
        (["head"], [], ["head"]),
        (["*", "stem.weight"], [], ["stem", "h.0.up", "h.0.down", "h.1.up"]),
        (["*", "wte"], ["h.*"], ["wte"]),
        (["h.0.up"], ["h.0.up"], []),
        ([], [], []),
    ],
)
def test_globs_name_sites_and_roles_wait_to_be_named(targets, ignore, named):
    chosen, rows = choose(sites(), targets, ignore)
    assert [site.name.removesuffix(".weight") for site in chosen] == named
    assert {row.site for row in rows} == {site.name for site in sites()} - {site.name for site in chosen}
    assert all(row.status == "left" and row.reason for row in rows)


@pytest.mark.parametrize(
    ("site", "targets", "ignore", "reason"),
    [
        ("stem.weight", ["*"], [], "the stem reads the input: dense unless named by --targets"),
        ("head.weight", ["*"], [], "the head makes the scored output: dense unless named by --targets"),
        ("wte.weight", ["*"], [], "tied to an embedding: dense unless named by --targets"),
        ("h.0.up.weight", ["h.1.*"], [], "not among the targets"),
        ("h.0.up.weight", ["*"], ["h.*"], "ignored by request"),
        ("head.weight", ["head"], ["head"], "ignored by request"),
    ],
)
def test_what_is_left_says_why(site, targets, ignore, reason):
    _, rows = choose(sites(), targets, ignore)
    assert {row.site: row.reason for row in rows}[site] == reason


@pytest.mark.parametrize(("targets", "ignore"), [(["*", "h.0.upp"], []), (["*"], ["h.0.upp"])])
def test_a_glob_that_names_nothing_is_an_error_with_the_nearest(targets, ignore):
    with pytest.raises(RecipeError, match=r"named 'h\.0\.upp'") as caught:
        choose(sites(), targets, ignore)
    assert caught.value.hint == "h.0.up.weight"


# *** dumping ***


def test_every_stage_is_dumped_as_text_and_as_a_difference(graph, tmp_path):
    folder = tmp_path / "a" / "dump"
    run_pipeline(graph, [Drop()], Context(), [dump_graphs(folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["00-input.txt", "01-drop.diff", "01-drop.txt"]
    assert graph.text() in (folder / "00-input.txt").read_text()
    changed = [line for line in (folder / "01-drop.diff").read_text().splitlines() if line[0] in "+-"]
    assert changed == [
        "--- before",
        "+++ after",
        "-# 0.weight [3, 4] linear.default axis=1 zeros=0.0%",
        "-# 2.weight [2, 3] linear.default axis=1 zeros=0.0%",
        "+# 0.weight [3, 4] linear.default axis=1 zeros=25.0%",
        "+# 2.weight [2, 3] linear.default axis=1 zeros=33.3%",
    ]


def test_a_dump_deletes_nothing(graph, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run_pipeline(graph, [], Context(), [dump_graphs(tmp_path)])
    assert (tmp_path / "notes.txt").read_text() == "mine"
