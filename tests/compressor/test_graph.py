import logging

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compressor.errors import InternalError, SourceError
from compressor.graph import Graph, Port, lower
from tests.compressor.tiny import BATCH, Compute, graph_of, normal


def attention() -> nn.Module:
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        B, S, d = x.shape
        q, k, v = self.qkv(x).view(B, S, 3, 2, d // 2).permute(2, 0, 3, 1, 4)  # (B, heads, S, d / heads)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
        return self.out(y.transpose(1, 2).reshape(B, S, d))

    return Compute(forward, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8))


TEXT = {0: "batch", 1: "sequence"}


def text_graph() -> Graph:
    return graph_of(attention(), normal(2, 5, 8), torch.ones(2, 5), dynamic=[TEXT, TEXT])


# *** lowering ***


@pytest.mark.parametrize(("batch", "length"), [(2, 5), (1, 5), (3, 1), (4, 9)])
def test_a_graph_computes_what_the_model_does_at_any_size(batch, length):
    torch.manual_seed(0)
    model = attention()
    graph = graph_of(model, normal(2, 5, 8), torch.ones(2, 5), dynamic=[TEXT, TEXT])
    x, mask = normal(batch, length, 8, seed=1), torch.ones(batch, length)
    mask[0, 1:] = 0
    out = graph.run({"x1": mask, "x0": x})
    assert list(out) == ["y"]
    with torch.no_grad():
        torch.testing.assert_close(out["y"], model(x, mask))


def test_running_makes_no_gradients():
    graph = graph_of(nn.Linear(4, 2), normal(3, 4))
    assert not graph.run({"x0": normal(3, 4).requires_grad_()})["y"].requires_grad


def test_weights_are_the_models_own():
    model = nn.Linear(4, 2)
    graph = graph_of(model, normal(3, 4))
    [site] = graph.sites
    site.write(torch.zeros(1, 2, 4))
    assert model.weight.count_nonzero() == 0
    model.weight.data.fill_(1)
    assert graph.run({"x0": torch.ones(3, 4)})["y"].tolist() == (4 + model.bias).expand(3, 2).tolist()


def test_names_are_the_models_own_though_the_forward_is_ours():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2)))
    graph = graph_of(model, normal(3, 4))
    assert [site.name for site in graph.sites] == ["0.weight", "1.0.weight"]


def test_the_model_is_left_as_it_was():
    model = nn.Linear(4, 2)
    graph_of(model, normal(3, 4))
    assert "forward" not in model.__dict__
    model.forward = lambda x: x + 1  # type: ignore[method-assign]
    patched = model.forward
    graph_of(model, normal(3, 4))
    assert model.forward is patched


def test_the_example_may_be_a_view():
    base = normal(3, 8)
    graph = graph_of(nn.Linear(4, 2), base[:, :4])
    torch.onnx.export(graph.program(), verbose=False)


def test_what_works_in_place_is_captured_as_if_it_did_not():
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y[:, :2].mul_(3)
        return F.relu(y, inplace=True)

    model = Compute(forward, fc=nn.Linear(4, 4))
    graph = graph_of(model, normal(3, 4))
    assert "_.default" not in graph.text()
    assert "relu.default" in graph.text()
    x = normal(7, 4, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(graph.run({"x0": x})["y"], model(x))


# *** refusals ***


@pytest.fixture
def logged():
    """What torch logs while it captures a graph."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_a_data_dependent_forward_is_refused_with_the_line_where_it_is(capfd, logged):
    model = Compute(lambda self, x: x if x.sum() > 0 else -x)
    with pytest.raises(SourceError, match=r"torch\.export cannot capture Compute") as caught:
        graph_of(model, normal(3, 4))
    assert "data-dependent" in caught.value.found
    assert "test_graph.py" in caught.value.found
    assert "\n" not in caught.value.found
    assert "forward" not in model.__dict__
    assert capfd.readouterr() == ("", "")  # torch would print the graph
    assert not logged


def test_an_axis_that_cannot_vary_is_refused_with_the_axis():
    with pytest.raises(SourceError) as caught:
        graph_of(Compute(lambda self, x: x.reshape(3, 2, 2)), normal(3, 4))
    assert "constant (3)" in caught.value.found


def test_a_bug_of_the_model_keeps_its_name():
    with pytest.raises(SourceError) as caught:
        graph_of(Compute(lambda self, x: self.missing(x)), normal(3, 4))
    assert caught.value.found == "AttributeError: 'Compute' object has no attribute 'missing'"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_broken_weights_is_refused_by_name(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight.data[0, 3] = value
    with pytest.raises(SourceError, match=r"the weight 1\.weight holds NaN or Inf"):
        graph_of(model, normal(3, 4))


def test_a_weight_that_breaks_later_is_our_fault():
    graph = graph_of(nn.Linear(4, 2), normal(3, 4))
    graph.verify()
    graph.sites[0].weight.data[0, 0] = float("nan")
    with pytest.raises(InternalError, match="weight holds NaN or Inf after a pass"):
        graph.verify()


# *** restructuring ***


def without_relu() -> tuple[nn.Module, Graph]:
    """A graph whose ReLU a pass has taken out, and the model that computes the same."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = graph_of(model, normal(3, 4))
    assert len(graph.sites) == 2
    [relu] = [node for node in graph.module.graph.nodes if node.target is torch.ops.aten.relu.default]
    relu.replace_all_uses_with(relu.args[0])
    graph.module.graph.erase_node(relu)
    graph.restructured()
    return nn.Sequential(model[0], model[2]), graph


def test_a_restructured_graph_runs_at_any_size_and_so_does_its_program():
    model, graph = without_relu()
    x = normal(7, 4, seed=1)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(graph.run({"x0": x})["y"], expected)
    torch.testing.assert_close(graph.program().module()(x)[0], expected)


def test_sites_are_found_anew_in_a_restructured_graph():
    _, graph = without_relu()
    nodes = set(graph.module.graph.nodes)
    assert all(use.node in nodes and use.activation in nodes for site in graph.sites for use in site.uses)


def test_a_program_made_anew_shares_the_weights():
    _, graph = without_relu()
    program = graph.program()
    graph.sites[0].weight.data.zero_()
    assert program.state_dict["0.weight"].count_nonzero() == 0
    assert graph.program() is program


def test_a_graph_that_was_left_broken_is_noticed():
    graph = graph_of(nn.Linear(4, 2), normal(3, 4))
    nodes = list(graph.module.graph.nodes)
    nodes[-1].prepend(nodes[0])  # the weight after its reader
    with pytest.raises(InternalError, match="before it has been defined"):
        graph.verify()
    with pytest.raises(InternalError, match="a pass has left the graph broken"):
        graph.restructured()


# *** text ***


def test_text_shows_one_line_per_value():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(100, 2, bias=False))
    assert graph_of(model, normal(2, 3, 5, 5)).text() == (
        "%_0_weight: float32[4, 3, 3, 3] = weight 0.weight\n"
        "%_0_bias: float32[4] = weight 0.bias\n"
        "%_1_weight: float32[4] = weight 1.weight\n"
        "%_1_bias: float32[4] = weight 1.bias\n"
        "%_3_weight: float32[2, 100] = weight 3.weight\n"
        "%_1_running_mean: float32[4] = weight 1.running_mean\n"
        "%_1_running_var: float32[4] = weight 1.running_var\n"
        "%args_0: float32[batch, 3, 5, 5] = input x0\n"
        "%conv2d: float32[batch, 4, 5, 5] = conv2d.default(%args_0, %_0_weight, %_0_bias, [1, 1], [1, 1])\n"
        "%batch_norm: float32[batch, 4, 5, 5] = batch_norm.default(%conv2d, %_1_weight, %_1_bias, %_1_running_mean, "
        "%_1_running_var, False, 0.1, 1e-05, False)\n"
        "%flatten: float32[batch, 100] = flatten.using_ints(%batch_norm, 1)\n"
        "%linear: float32[batch, 2] = linear.default(%flatten, %_3_weight)\n"
        "return [%linear]"
    )


def test_text_calls_axes_by_our_names_and_numbers_numbers():
    text = text_graph().text()
    assert "%args_0: float32[batch, sequence, 8] = input x0" in text
    assert ": number = sym_size.int(%args_0, 1)" in text


def test_text_is_the_same_each_time():
    assert text_graph().text() == text_graph().text()


def test_a_port_says_its_name_and_axes():
    assert str(Port("input_ids", TEXT)) == "input_ids(0: batch, 1: sequence)"


def test_several_outputs_keep_their_order():
    model = Compute(lambda self, x: x)
    outputs = (Port("twice", BATCH), Port("half", BATCH))
    graph = lower(model, lambda x: (2 * model(x), model(x) / 2), {"x": normal(3, 4)}, (Port("x", BATCH),), outputs)
    out = graph.run({"x": torch.ones(2, 4)})
    assert {name: value[0, 0].item() for name, value in out.items()} == {"twice": 2.0, "half": 0.5}
    assert isinstance(graph.module, fx.GraphModule)


def test_a_copy_keeps_its_weights_when_those_of_the_graph_change():
    graph = graph_of(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), normal(3, 8), dynamic=[{0: "batch"}])
    feeds = {"x0": normal(5, 8)}
    before, kept = graph.run(feeds)["y"], graph.copy()
    with torch.no_grad():
        graph.sites[0].weight.zero_()
    assert torch.equal(kept.run(feeds)["y"], before)
    assert not torch.equal(graph.run(feeds)["y"], before)
    assert [site.name for site in kept.sites] == [site.name for site in graph.sites]
    assert kept.text() == graph.text()
    assert len(list(kept.program().parameters())) == 4


def test_tied_weights_of_a_copy_are_tied():
    model = Compute(lambda self, x: self.table(x) @ self.table.weight.T, table=nn.Embedding(7, 4))
    kept = graph_of(model, torch.tensor([[1, 2], [3, 4]])).copy()
    assert len(list(kept.module.parameters())) == 1
