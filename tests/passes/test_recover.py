"""The pass `recover` on graphs small enough to train in a blink."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import DataError, InternalError, RecipeError
from compressor.graph import Graph
from compressor.passes.fit import Fit
from compressor.passes.objectives import Teacher, aligned
from compressor.passes.recover import Recover
from compressor.passes.student import Student
from compressor.passes.train_mode import Runner
from compressor.pipeline import Context, Pass, format_pass, parse_pass, run_pipeline
from compressor.source import Training
from tests.compressor.tiny import Compute, graph_of, normal, same, state
from tests.trained import lowered, restored

CPU = torch.device("cpu")
CLASSES = 3


def dense_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def conv_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def tied_net() -> nn.Module:
    """One weight, contracted twice, and once looked up."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(F.linear(x, self.weight))
        return F.linear(F.linear(h, self.weight) + F.embedding(torch.zeros_like(h[:, 0]).long(), self.weight), self.out)

    return Compute(forward, weight=normal(8, 8), out=normal(CLASSES, 8, seed=1))


# name: the net, the shape of a sample, the weights that are pruned
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "dense": (dense_net, (8,), {"0.weight", "2.weight"}),
    "conv": (conv_net, (4, 6, 6), {"0.weight", "3.weight"}),
    "tied": (tied_net, (8,), {"weight"}),
}


def samples(*shape: int, n: int = 64, has_labels: bool = True, seen: list[int] | None = None) -> Training:
    """Noise, labelled by its largest value or channel; `seen` is told which samples are drawn."""
    x = normal(n, *shape, seed=5)
    labels = x.flatten(2).mean(2)[:, :CLASSES].argmax(1) if x.ndim > 2 else x[:, :CLASSES].argmax(1)

    def batch(rows: Any, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        if seen is not None:
            seen.extend(rows)
        return {"x0": x[rows]}, labels[rows]

    return Training(n, f"{n} samples of noise", batch, F.cross_entropy if has_labels else None)


def pruned(name: str) -> Graph:
    """The graph without half of some weights."""
    make, shape, targets = NETS[name]
    graph = graph_of(make(), normal(2, *shape))
    run_pipeline(graph, [prune(targets)], Context())
    return graph


def prune(targets: set[str]) -> Pass:
    return parse_pass(f"sparsify{{pattern=0.5,method=magnitude,refit=0,targets=[{','.join(sorted(targets))}]}}")


def recovered(name: str, options: str, training: Training | None = None, **context: Any) -> tuple[Graph, str]:
    """The graph without half of some weights after the rest was trained, and what the pass says."""
    make, shape, targets = NETS[name]
    graph = graph_of(make(), normal(2, *shape))
    training = training or samples(*shape)
    passes = [prune(targets), parse_pass(f"recover{{{options}}}")]
    [_, outcome] = run_pipeline(graph, passes, Context(training=lambda n: training, dense=graph.copy(), **context))
    return graph, outcome.notes[0]


def learned(fit: Fit) -> dict[str, Tensor]:
    """The student's state at the end, from whichever device it learned on."""
    return {name: x.to(CPU) for name, x in fit.student.state().items()}


def zeros(graph: Graph) -> dict[str, Tensor]:
    return {site.name: site.weight.detach() == 0 for site in graph.sites}


# *** zeros ***


@pytest.mark.parametrize("options", [{}, {"method": "distill"}, {"precision": "bfloat16"}], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_every_zero_stays_under_large_steps_and_decay_and_the_other_weights_move(name, options):
    """At the end of the training, whether or not that state is kept."""
    make, shape, targets = NETS[name]
    graph, dense = pruned(name), graph_of(make(), normal(2, *shape))
    before = {site.name: site.weight.detach().clone() for site in graph.sites}
    settings = {"method": "finetune", "steps": 6, "batch": 8, "rate": 0.1, "decay": 0.5, "patience": 0, "checks": 1}
    fit = Recover(**(settings | options))._fit(graph, samples(*shape), Context(dense=dense))
    fit.run(Context().progress)
    for site, W in learned(fit).items():
        if site in before:
            assert (before[site] == 0).any() == (site in targets)
            assert torch.equal(W == 0, before[site] == 0)
            assert (before[site] != W)[before[site] != 0].all()


def test_a_weight_with_two_readers_is_one_leaf():
    student = Student(graph_of(tied_net(), normal(2, 8)), CPU)
    assert set(student.trained) == {"weight", "out"}
    tensors = student.tensors()
    assert tensors["weight"].requires_grad
    assert student.trained["weight"].leaf is not student.trained["weight"].x


def test_ensures_finds_a_zero_that_was_lost_and_a_shape_that_changed():
    graph, one = pruned("dense"), Recover("finetune", steps=2)
    outcome = one.run(graph, Context(training=lambda n: samples(8)))
    one.ensures(graph, outcome)
    site = graph.sites[0]
    with torch.no_grad():
        site.weight[site.weight == 0] = 1e-9
    with pytest.raises(InternalError, match=r"shape of 0.weight, or a zero of it"):
        one.ensures(graph, outcome)
    other = graph_of(nn.Sequential(nn.Linear(8, 4)), normal(2, 8))
    with pytest.raises(InternalError):
        one.ensures(other, outcome)


def test_a_parameter_that_asks_for_no_gradient_is_left_as_it_is():
    model = dense_net()
    model[2].weight.requires_grad_(False)
    graph = graph_of(model, normal(2, 8))
    fit = Recover("finetune", steps=4, batch=8, patience=0)._fit(graph, samples(8), Context())
    fit.run(Context().progress)
    assert torch.equal(learned(fit)["2.weight"], model[2].weight)
    assert not torch.equal(learned(fit)["0.weight"], model[0].weight)


# *** it learns ***


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_finetuning_lowers_the_loss_on_samples_it_has_not_seen(name):
    _, note = recovered(name, "method=finetune,steps=60,batch=16,rate=0.03,held_out=0.25,patience=0")
    first, least = map(float, note.split("held-out loss ")[1].split(" on ")[0].split(" -> "))
    assert least < 0.9 * first
    assert "learned from labels for 60 steps of 16" in note
    assert "on 16 samples" in note


def test_distilling_brings_the_outputs_near_to_the_dense_models():
    make, shape, _ = NETS["dense"]
    dense, before = graph_of(make(), normal(2, *shape)), pruned("dense")
    unlabelled = samples(*shape, n=400, has_labels=False)
    graph, note = recovered("dense", "method=distill,steps=100,batch=16,rate=0.03", unlabelled)
    x = {"x0": normal(100, *shape, seed=9)}
    wanted = dense.run(x)["y"]
    assert (graph.run(x)["y"] - wanted).square().mean() < 0.6 * (before.run(x)["y"] - wanted).square().mean()
    assert "learned from the dense model and its" in note


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    runs = [state(recovered("conv", "method=finetune,steps=4,batch=8", seed=seed)[0]) for seed in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


# *** the teacher ***


@pytest.mark.parametrize("is_logits", [True, False])
def test_a_student_that_equals_its_teacher_has_no_loss_and_a_pruned_one_has(is_logits):
    make, shape, _ = NETS["dense"]
    x = {"x0": normal(4, *shape)}
    losses = []
    for graph in (graph_of(make(), normal(2, *shape)), pruned("dense")):
        dense = graph_of(make(), normal(2, *shape))
        teacher = Teacher(graph, dense, CPU, temperature=2.0, hidden=1.0, is_logits=is_logits)
        student = Student(graph, CPU)
        made = Runner(graph, teacher.wanted, CPU)(x, student.tensors(), gradients=True)
        losses.append(teacher.loss(made, x, torch.zeros(4)).item())
    assert losses[0] == 0.0
    assert losses[1] > 1e-3


def test_only_distilling_needs_the_dense_model():
    assert Recover("distill").needs_dense
    assert not Recover("finetune").needs_dense


def test_blocks_align_by_name_and_not_where_their_widths_differ():
    def narrow(width: int) -> Graph:
        torch.manual_seed(0)
        return graph_of(
            nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, width), nn.Linear(width, 3)), normal(2, 8)
        )

    assert list(aligned(narrow(8), narrow(8))) == ["0:0", "2:0"]
    assert list(aligned(narrow(8), narrow(6))) == ["0:0"]


def test_the_blocks_of_gpt2_align_at_the_residual_stream():
    _, graph = lowered("tiny-gpt2")
    pairs = aligned(graph, graph.copy())
    assert list(pairs) == [f"transformer.h.{i}:0" for i in range(4)]
    assert {node.meta["val"].shape[-1] for node, _ in pairs.values()} == {128}


# *** batch normalization ***


@pytest.mark.parametrize("form", ["batch_norm", "no_training"])
def test_in_training_form_it_computes_what_the_module_does_in_training_mode(form):
    model = conv_net()
    graph = graph_of(model, normal(2, 4, 6, 6))
    if form == "no_training":
        graph._program = graph.program().run_decompositions({})
        graph.module = graph._program.module(check_guards=False)
        graph.restructured()
    assert f"{'_native_batch_norm_legit_no_training' if form == 'no_training' else 'batch_norm'}" in graph.text()
    x, student, text = normal(5, 4, 6, 6, seed=3), Student(graph, CPU), graph.text()
    output = graph.module.graph.output_node().args[0][0]
    [made] = Runner(graph, [output], CPU, training=True)({"x0": x}, student.tensors())
    assert graph.text() == text
    torch.testing.assert_close(made, model.train()(x), rtol=1e-5, atol=1e-5)
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        torch.testing.assert_close(student.buffers[name], model.get_buffer(name), rtol=1e-5, atol=1e-6)


def test_running_statistics_move_and_the_graph_is_in_evaluation_form_as_before():
    before, text = pruned("conv"), pruned("conv").text()
    graph, _ = recovered("conv", "method=finetune,steps=20,batch=16,rate=0.03,held_out=0.25,patience=0")
    assert graph.text() == text
    for name in ("1.running_mean", "4.running_var"):
        assert not torch.equal(graph.module.get_buffer(name), before.module.get_buffer(name))
    x = normal(3, 4, 6, 6, seed=8)
    alone = torch.cat([graph.run({"x0": one[None]})["y"] for one in x])  # one by one: no statistics of the batch
    torch.testing.assert_close(graph.run({"x0": x})["y"], alone, rtol=1e-5, atol=1e-5)


def test_a_graph_moves_to_the_device_that_it_is_trained_on():
    _, graph = lowered("tiny-gpt2")
    meta = torch.device("meta")
    runner = Runner(graph, [graph.module.graph.output_node().args[0][0]], meta)
    [logits] = runner(
        {name: x.to(meta) for name, x in graph.example.items()},
        {name: x.to(meta) for name, x in Student(graph, CPU).tensors().items()},
    )
    assert logits.device == meta
    assert logits.shape[-1] == 2048


# *** what is kept ***


def test_a_run_that_diverges_leaves_everything_as_it_was():
    graph, note = recovered("conv", "method=finetune,steps=20,batch=8,rate=1000,clip=0,warmup=0,checks=20,patience=2")
    assert same(state(graph), state(pruned("conv")))
    assert "ended early" in note
    assert note.split("best after step ")[1].startswith("0;")


def test_the_state_that_did_best_is_kept_and_patience_ends_the_run():
    """A loss that is told instead of measured: best at the second check, then worse."""
    from compressor.passes import fit

    told, kept = iter([5.0, 4.0, 3.0, 3.5, 3.2, 1.0]), []

    class Told(fit.Fit):
        def held_out_loss(self) -> float:
            kept.append(self.student.state())
            return next(told)

    graph = pruned("dense")
    one = Recover("finetune", steps=10, checks=10, batch=8, patience=2)
    made = one._fit(graph, samples(8), Context())
    run = Told(**{f.name: getattr(made, f.name) for f in dataclasses.fields(fit.Fit) if f.init})
    done = run.run(Context().progress)
    assert (done.step, done.best, done.first, done.least, done.ended) == (4, 2, 5.0, 3.0, "no progress in 2 checks")
    assert same(run.best, kept[2])
    assert not same(run.best, kept[4])


def test_samples_held_out_are_not_learned_from_and_all_others_are():
    seen: list[int] = []
    recovered("dense", "method=finetune,epochs=1,batch=5,held_out=0.2,checks=1,patience=0", samples(8, n=25, seen=seen))
    first, between, last = seen[:5], seen[5:-5], seen[-5:]
    assert first == last == sorted(first)
    assert sorted([*first, *between]) == list(range(25))


# *** going on after a kill ***


class Killed(Exception):
    pass


def dies_after(training: Training, n_batches: int) -> Training:
    left = iter(range(n_batches))

    def batch(rows: Any, seed: int) -> tuple[Any, Tensor]:
        if next(left, None) is None:
            raise Killed
        return training.batch(rows, seed)

    return dataclasses.replace(training, batch=batch)


@pytest.mark.parametrize("method", ["finetune", "distill"])
def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_bytes(tmp_path, method):
    options, training = f"method={method},steps=12,batch=8,checks=4,patience=0,augment=[crop,flip]", samples(4, 8, 8)
    whole, note = recovered_conv8(options, training)
    with pytest.raises(Killed):
        recovered_conv8(options, dies_after(training, 10), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    seen: list[int] = []
    again, note_again = recovered_conv8(options, samples(4, 8, 8, seen=seen), tmp_path)
    assert same(state(whole), state(again))
    assert note == note_again
    assert len(seen) == 6 * 8 + 2 * 6  # the six steps after the checkpoint, and the two checks that were left


def recovered_conv8(options: str, training: Training, kept: Path | None = None) -> tuple[Graph, str]:
    graph = graph_of(conv_net(), normal(2, 4, 8, 8))
    passes = [parse_pass("sparsify{pattern=2:4,method=magnitude,refit=0}"), parse_pass(f"recover{{{options}}}")]
    [_, outcome] = run_pipeline(graph, passes, Context(training=lambda n: training, dense=graph.copy(), kept=kept))
    return graph, outcome.notes[0]


def test_a_checkpoint_of_another_run_or_one_that_is_cut_off_is_not_gone_on_from(tmp_path):
    training = samples(4, 8, 8)
    fresh, _ = recovered_conv8("method=finetune,steps=4,batch=8,rate=0.02", training)
    recovered_conv8("method=finetune,steps=4,batch=8", training, tmp_path)
    other, _ = recovered_conv8("method=finetune,steps=4,batch=8,rate=0.02", training, tmp_path)
    assert same(state(fresh), state(other))
    assert len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    cut_off, _ = recovered_conv8("method=finetune,steps=4,batch=8,rate=0.02", training, tmp_path)
    assert same(state(fresh), state(cut_off))


# *** what is refused ***


def test_finetuning_without_labels_is_refused_before_any_time_is_spent_and_distilling_is_not():
    unlabelled = samples(8, has_labels=False)
    with pytest.raises(DataError, match=r"finetune needs labels(.|\n)*--recover distill"):
        Recover("finetune").check(unlabelled)
    Recover("distill").check(unlabelled)
    with pytest.raises(DataError, match="others to hold out"):
        Recover("distill").check(dataclasses.replace(unlabelled, n=1))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("method=fine-tune", "did you mean|unknown method 'fine-tune'"),
        ("method=distill,precision=int8", "unknown precision"),
        ("method=distill,augment=[mixup]", "unknown augment 'mixup'"),
        ("method=distill,steps=-1", "recover.steps cannot be -1"),
        ("method=distill,batch=0", "recover.batch cannot be 0"),
        ("method=distill,epochs=0", "must be above 0"),
        ("method=distill,held_out=0.9", "at most 0.5"),
        ("method=distill,warmup=1", "a share below 1"),
        ("steps=3", "recover needs method"),
    ],
)
def test_refuses_options_that_make_no_sense(options, reason):
    with pytest.raises(RecipeError, match=reason):
        parse_pass(f"recover{{{options}}}")


def test_prints_its_options_and_reads_them_back():
    one = Recover("distill", steps=7, augment=("crop", "flip"), rate=0.003)
    assert format_pass(one) == "recover{method=distill,steps=7,rate=0.003,augment=[crop,flip]}"
    assert parse_pass(format_pass(one)) == one


def test_a_trained_gpt2_recovers_a_part_of_what_pruning_cost():
    source, graph = lowered("tiny-gpt2")
    evaluation = source.evaluation(24)
    assert evaluation is not None
    with restored(graph):
        context = Context(source.calibration, training=source.training)
        run_pipeline(graph, [parse_pass("sparsify{pattern=2:4,method=wanda,refit=0,samples=16}")], context)
        broken, before = evaluation.score(graph.run).value, zeros(graph)
        run_pipeline(graph, [Recover("finetune", steps=12, batch=16, training=200)], context)
        assert evaluation.score(graph.run).value < 0.9 * broken
        assert all(torch.equal(zero, zeros(graph)[name]) for name, zero in before.items())
