"""What each site's outputs do to the loss, against sums that can be done by hand and losses that can be measured."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.graph import Graph
from compressor.progress import QUIET
from compressor.sensitivity import SAMPLES, sensitivities
from compressor.sites import WeightSite
from tests.compressor.tiny import graph_of, normal


def found(graph: Graph, batches: list[dict[str, Tensor]], is_logits: bool = True, seed: int = 0):
    return sensitivities(graph, graph.sites, batches, seed=seed, is_logits=is_logits, progress=QUIET)


class Net(nn.Module):
    """Two sites that feed the logits, the first through a convolution's positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_at_the_logits_it_is_the_variance_of_the_classes():
    fc = nn.Linear(5, 3)
    x = normal(4000, 5)
    graph = graph_of(fc, x)
    one = sensitivities(graph, graph.sites, [{"x0": x}], seed=0, is_logits=True, progress=QUIET)[graph.sites[0]]
    p = graph.run({"x0": x})["y"].softmax(-1)
    assert one.rows[0].tolist() == pytest.approx((p * (1 - p)).mean(0).tolist(), rel=0.1)
    assert one.statistics.n == 4000


def test_a_small_change_of_one_output_costs_half_its_square_times_the_sensitivity():
    torch.manual_seed(0)
    model = Net()
    x = normal(3000, 4, 3, 3)  # one position each: terms of different positions would be left out
    graph = graph_of(model, x)
    felt = found(graph, [{"x0": x}])
    p = graph.run({"x0": x})["y"].log_softmax(-1)
    for channel in (0, 4):
        with torch.no_grad():
            model.conv.bias[channel] += 0.05
        q = graph.run({"x0": x})["y"].log_softmax(-1)
        with torch.no_grad():
            model.conv.bias[channel] -= 0.05
        measured = (p.exp() * (p - q)).sum(-1).mean()
        foretold = felt[graph.sites[0]].rows.flatten()[channel] * 0.05**2 / 2
        assert float(foretold) == pytest.approx(float(measured), rel=0.15)


def test_by_pairs_the_diagonal_is_the_same_and_logits_that_make_up_for_each_other_cost_nothing():
    fc = nn.Linear(5, 3)
    x = normal(500, 5)
    graph = graph_of(fc, x)
    one = sensitivities(
        graph, graph.sites, [{"x0": x}], seed=0, is_logits=True, progress=QUIET, by_pairs=True
    )[graph.sites[0]]  # fmt: skip
    assert one.F is not None
    assert torch.allclose(one.F[0].diagonal(), one.rows[0])
    assert one.F[0].sum(1).abs().max() < 1e-5  # a constant on all logits changes no class


def test_a_classifier_that_is_certain_still_feels_what_moves_its_logits():
    fc = nn.Linear(4, 3)
    fc.bias.data = torch.tensor([60.0, 0.0, 0.0])
    x = normal(5000, 4)
    graph = graph_of(fc, x)
    rows = found(graph, [{"x0": x}])[graph.sites[0]].rows[0]
    assert rows.min() > 1e-3


def test_outputs_that_are_no_logits_are_probed_for_their_squared_error():
    fc = nn.Linear(4, 1, bias=False)
    x = normal(3000, 4)
    graph = graph_of(fc, x)
    rows = found(graph, [{"x0": x}], is_logits=False)[graph.sites[0]].rows
    energy = graph.run({"x0": x})["y"].square().mean()
    assert float(rows) == pytest.approx(1 / float(energy), rel=0.1)


def test_the_same_seed_gives_the_same_and_no_weight_or_gradient_is_touched():
    torch.manual_seed(0)
    model = Net()
    batches = [{"x0": normal(8, 4, 5, 5, seed=seed)} for seed in range(3)]
    graph = graph_of(model, batches[0]["x0"])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    first, second = found(graph, batches), found(graph, batches)
    for site in graph.sites:
        assert torch.equal(first[site].rows, second[site].rows)
        assert first[site].rows.shape == (site.groups, site.m // site.groups)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(x.grad is None for x in model.parameters())


def test_a_model_whose_parameters_are_frozen_has_gradients_all_the_same():
    model = Net().requires_grad_(False)
    graph = graph_of(model, normal(4, 4, 3, 3))
    felt = found(graph, [{"x0": normal(4, 4, 3, 3)}])
    assert all(float(one.rows.sum()) > 0 for one in felt.values())


def test_no_more_samples_are_used_than_tell():
    fc = nn.Linear(5, 3)
    graph = graph_of(fc, normal(2, 5))
    batches = [{"x0": normal(40, 5, seed=seed)} for seed in range(9)]
    assert found(graph, batches)[graph.sites[0]].statistics.n == 40 * -(-SAMPLES // 40)


@pytest.mark.parametrize(("layout", "shape"), [("rows", (6, 4)), ("columns", (4, 6)), ("kernel", (6, 2, 3, 3))])
def test_outputs_are_ordered_as_the_rows_of_the_matrix(layout, shape):
    groups = 2 if layout == "kernel" else 1
    site = WeightSite("w", "op", torch.zeros(shape), layout, (), groups)
    y = torch.arange(6.0)[:, None, None].expand(6, 2, 2)[None] if layout == "kernel" else torch.arange(6.0)[None]
    rows = site.outputs(None, y)  # type: ignore[arg-type]
    assert rows.shape == (groups, 4 if layout == "kernel" else 1, 6 // groups)
    assert rows[:, 0].flatten().tolist() == list(range(6))
