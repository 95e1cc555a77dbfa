"""Sites that read the same activation are solved with one Gram matrix, and get what each gets alone."""

import pytest
import torch
from torch import Tensor, nn

from compressor.pipeline import Context, parse_pass
from tests.compressor.tiny import graph_of, normal

RECIPE = "sparsify{pattern=2:4,method=%s,refit=2,bias=true,targets=[%s]}"


class Attention(nn.Module):
    """What is left of one: q, k and v read the same activation, o reads another; v has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=name != "v") for name in "qkvo")

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(self.q(x) * self.k(x) + self.v(x)))


def pruned(method: str, names: str = "*") -> dict[str, Tensor]:
    torch.manual_seed(0)
    graph = graph_of(nn.Sequential(Attention()), normal(64, 16))
    feeds = {name: normal(*x.shape) for name, x in graph.example.items()}
    parse_pass(RECIPE % (method, names)).run(graph, Context(lambda n: [feeds]))
    return {name: x.clone() for name, x in graph.module.state_dict().items()}


@pytest.mark.parametrize("method", ["sparsegpt", "admm"])
def test_a_site_gets_the_same_bytes_alone_and_beside_others(method):
    together = pruned(method, "0.q.weight,0.k.weight,0.v.weight")
    for name in "qkv":
        alone = pruned(method, f"0.{name}.weight")
        assert (alone[f"0.{name}.weight"] == 0).any()
        assert torch.equal(alone[f"0.{name}.weight"], together[f"0.{name}.weight"])


def test_q_and_k_share_a_factor_and_v_whose_means_stay_has_its_own(monkeypatch):
    cholesky, calls = torch.linalg.cholesky_ex, []
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda H: calls.append(1) or cholesky(H))
    pruned("sparsegpt", "0.q.weight,0.k.weight")
    assert len(calls) == 1
    pruned("sparsegpt", "0.*")
    assert len(calls) == 1 + 3
