"""Networks that vmap or the outer products cannot serve: the same numbers, by a slower way that says so."""

import warnings
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from tdalib import Recipe, attribute, attributors, deep_ensemble, models
from tdalib.data import Points, Task, of_each
from tdalib.networks import SlowerPath
from tdalib.objectives import get
from tdalib.training import Training, batch_order, train, train_stack

VOCABULARY, LENGTH, N = 30, 7, 6
RECIPE = Recipe(epochs=2, batch_size=4)
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 8, "max_position_embeddings": LENGTH}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.gru, self.out = nn.Embedding(VOCABULARY, 4), nn.GRU(4, 5), nn.Linear(5, 3)

    def forward(self, input_ids, attention_mask):
        _, last = self.gru(self.embedding(input_ids).transpose(0, 1))
        return self.out(last[0])


class Tied(nn.Module):
    """A linear layer whose weights serve twice, once not through the layer."""

    def __init__(self):
        super().__init__()
        self.embedding, self.square, self.out = nn.Embedding(VOCABULARY, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.square(self.embedding(input_ids).mean(1)).tanh()
        return self.out(hidden @ self.square.weight)


class Scaled(nn.Module):
    """A parameter without a dimension."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out, self.scale = (
            nn.Embedding(VOCABULARY, 4),
            nn.Linear(4, 3),
            nn.Parameter(torch.ones(())),
        )

    def forward(self, input_ids, attention_mask):
        return self.scale * self.out(self.embedding(input_ids).mean(1))


class Looking(Scaled):
    """A forward that looks at its numbers."""

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids)
        if not attention_mask.all():
            hidden = hidden * attention_mask[..., None]
        return self.scale * self.out(hidden.sum(1))


class Checkpointed(Scaled):
    def forward(self, input_ids, attention_mask):
        return checkpoint(super().forward, input_ids, attention_mask, use_reentrant=False)


def bert():
    config = BertConfig(**SIZES, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, num_labels=3)
    return BertForSequenceClassification(config)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(**SIZES, num_attention_heads=2, num_hidden_layers=2))


NETWORKS = {
    "GRU": (Recurrent, True),
    "tied weights": (Tied, False),
    "parameter without a dimension": (Scaled, False),
    "data-dependent": (Looking, True),
    "checkpointed": (Checkpointed, True),
    "BERT with a mask": (bert, True),
    "GPT-2": (gpt2, True),
}


def points(n, seed, language):
    stream = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LENGTH + 1, (n,), generator=stream)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.randint(1, VOCABULARY, (n, LENGTH), generator=stream) * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    targets = torch.arange(n) % 3
    if language:
        targets = get("next_token").targets_of(inputs)
    return Points(inputs, targets, {"index": torch.arange(n).numpy()})


def task_for(name):
    language = name == "GPT-2"
    objective = get("next_token" if language else "cross_entropy")
    return Task(
        points(N, 0, language), points(4, 1, language), objective, "tokens", () if language else ("a", "b", "c")
    )


def seeded(name):
    return models.get(lambda task, seed: NETWORKS[name][0]())


def draw_of(name):
    posterior = deep_ensemble(seeded(name), task_for(name), RECIPE, members=1, checkpoints=1)
    return posterior, posterior.draws(0)[0]


def gradients(draw, points):
    """∇L of every point by autograd on the module itself, (points, P)."""
    module, rows = draw.module(), []
    for k in range(len(points)):
        given = module(**of_each(lambda x, k=k: x[k : k + 1], points.inputs))
        loss = draw.objective.loss(getattr(given, "logits", given), points.targets[k : k + 1]).sum()
        grads = torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_autograd(name):
    posterior, draw = draw_of(name)
    task, slower = posterior.task, NETWORKS[name][1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        given = {method: attributors.get(method).function(draw, task) for method in ("gd", "gc")}
    train, test = gradients(draw, task.train), gradients(draw, task.test)
    torch.testing.assert_close(given["gd"], train @ test.T, rtol=1e-5, atol=1e-5 * given["gd"].abs().max().item())
    cosine = torch.nn.functional.cosine_similarity(train[:, None], test[None], dim=2)
    torch.testing.assert_close(given["gc"], cosine, rtol=1e-5, atol=1e-6)
    lines = [str(line.message) for line in said if line.category is SlowerPath]
    assert bool(lines) == slower
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("name", NETWORKS)
def test_influence_by_cg_is_that_of_dense_matrices(name):
    posterior, draw = draw_of(name)
    task = posterior.task
    given = attributors.get("if").function(draw, task, solver="cg", damping=0.1)
    theta = {key: p.detach() for key, p in draw.theta.items()}
    sizes = [p.numel() for p in theta.values()]

    def outputs(vector, inputs):
        parts = vector.split(sizes)
        return draw.outputs({key: part.view_as(p) for (key, p), part in zip(theta.items(), parts, strict=True)}, inputs)

    vector = torch.cat([p.flatten() for p in theta.values()])
    train, test = gradients(draw, task.train).double(), gradients(draw, task.test).double()
    square = 0.1 * torch.eye(len(vector), dtype=torch.float64)
    for k in range(N):
        point = task.train[k : k + 1]
        at = outputs(vector, point.inputs)
        v = vector.clone().requires_grad_()
        flat = outputs(v, point.inputs).flatten()
        jacobian = torch.stack([torch.autograd.grad(f, v, retain_graph=True)[0] for f in flat]).double()

        def loss(outputs, target=point.targets):
            return task.objective.loss(outputs, target).sum()

        hessian = torch.autograd.functional.hessian(loss, at.detach().double())
        square += jacobian.T @ hessian.reshape(len(flat), len(flat)) @ jacobian / N
    expected = train @ torch.linalg.solve(square, test.T) / N
    torch.testing.assert_close(given.double(), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore::tdalib.networks.SlowerPath")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stack_is_trained_as_one_after_another(name):
    task = task_for(name)
    network = seeded(name)(task, 0)
    weights = torch.cat([torch.ones(1, N), 1 - torch.eye(N)[:2]])
    training = Training(network, task, Recipe(epochs=2, batch_size=4, optimizer="sgd"), 0)
    start = deepcopy(network.state_dict())
    alone = list(train(training, weights))
    network.load_state_dict(start)
    stacked = list(train_stack(training, weights))
    for (one,), (other,) in zip(alone, stacked, strict=True):
        torch.testing.assert_close(one.theta, other.theta, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::tdalib.networks.SlowerPath")
@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_point_in_no_batch_has_exactly_no_effect(name, stack, monkeypatch):
    def order(*arguments):
        return [[batch[batch != 2] for batch in epoch] for epoch in batch_order(*arguments)]

    monkeypatch.setattr("tdalib.training.batch_order", order)
    posterior = deep_ensemble(seeded(name), task_for(name), RECIPE, members=1, checkpoints=2, stack=stack)
    tau = attribute(posterior, "loo", workers=1).tau.isel(method=0)
    assert (tau.isel(train=2) == 0).all() and (tau.isel(train=3) != 0).any()


@pytest.mark.parametrize("given", [lambda x: (x, x), lambda x: {"outputs": x}])
def test_a_tuple_or_dict_of_outputs_is_refused(given):
    class Pair(Scaled):
        def forward(self, input_ids, attention_mask):
            return given(super().forward(input_ids, attention_mask))

    posterior = deep_ensemble(lambda task, seed: Pair(), task_for("GRU"), RECIPE, members=1, checkpoints=1)
    with pytest.raises(ValueError, match=r"the model gave a (tuple|dict); it must give a tensor"):
        attribute(posterior, "gd", workers=1)


def test_an_error_of_the_network_itself_is_what_is_said():
    class Broken(Scaled):
        def forward(self, input_ids, attention_mask):
            raise ValueError("these tokens are not for me")

    posterior = deep_ensemble(lambda task, seed: Broken(), task_for("GRU"), RECIPE, members=1, checkpoints=1)
    with pytest.raises(ValueError, match="^the model fails: these tokens are not for me$"):
        attribute(posterior, "gd", workers=1)


def test_a_kernel_of_too_many_rows_is_refused():
    _, draw = draw_of("GPT-2")
    task = task_for("GPT-2")
    many = replace(task, train=task.train[[0] * 400])
    with pytest.raises(ValueError, match="84,000 rows, above 50,000; choose solver cg"):
        attributors.get("if").function(draw, many, damping=0.1)
