"""A network is a pure function of task and seed that sees each point by itself; what is not one is refused."""

import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, models, objectives, samplers
from tdalib.attributors import Method

RECIPE = Recipe(epochs=2, batch_size=4)
METHODS = ["loo", "ats", "if", "gd", "gc"]


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 3))


def tau(task, model, methods=METHODS, workers=1, recipe=RECIPE, **asked):
    posterior = deep_ensemble(model, task, recipe, **{"members": 2, "checkpoints": 2} | asked)
    return attribute(posterior, methods, workers=workers).tau


def fresh(task, seed):
    """What a careful user writes: the network from its own generator."""
    stream = np.random.RandomState(seed % 2**32)
    network = plain()
    for p in network.parameters():
        with torch.no_grad():
            p.copy_(torch.as_tensor(0.05 * stream.standard_normal(tuple(p.shape)), dtype=torch.float32))
    return network


def from_numpy(task, seed):
    network = plain()
    for p in network.parameters():
        with torch.no_grad():
            p.copy_(torch.as_tensor(0.05 * np.random.standard_normal(tuple(p.shape)), dtype=torch.float32))  # noqa: NPY002
    return network


def from_python(task, seed):
    network = plain()
    nn.init.constant_(network[1].bias, random.random())
    return network


@pytest.mark.parametrize("workers", [1, 2])
def test_weights_from_numpys_generator_follow_the_seed(digits, workers):
    np.random.seed(3)  # noqa: NPY002 (that of the caller, which is not to matter)
    np.testing.assert_array_equal(tau(digits, from_numpy, workers=workers), tau(digits, fresh))


def test_the_callers_generators_stay_as_they_are(digits):
    np.random.seed(3), random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    expected = np.random.rand(), random.random(), torch.rand(1).item()  # noqa: NPY002
    np.random.seed(3), random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    tau(digits, from_numpy)
    assert (np.random.rand(), random.random(), torch.rand(1).item()) == expected  # noqa: NPY002


def test_weights_from_pythons_generator_differ_between_members(digits):
    (first,), (second,) = (
        deep_ensemble(from_python, digits, RECIPE, members=2, checkpoints=1).draws(k) for k in range(2)
    )
    assert (first.theta["1.bias"] != second.theta["1.bias"]).all()
    np.testing.assert_array_equal(tau(digits, from_python, workers=2), tau(digits, from_python))


@pytest.mark.filterwarnings("ignore:the model starts from the same weights")
def test_one_ready_network_is_copied_each_time(digits):
    ready = models.get("mlp")(digits, 5)
    before = {name: p.clone() for name, p in ready.state_dict().items()}
    again = tau(digits, lambda task, seed: ready), tau(digits, lambda task, seed: ready)
    expected = tau(digits, lambda task, seed: models.get("mlp")(digits, 5))
    for found in (*again, tau(digits, ready)):
        np.testing.assert_array_equal(found, expected)
    assert all(torch.equal(before[name], p) for name, p in ready.state_dict().items())


def test_a_start_that_no_seed_changes_is_said_and_no_source_of_members(digits):
    ready = plain()
    with pytest.warns(
        UserWarning, match="starts from the same weights whatever the seed: initialisation is not sampled"
    ):
        varied = tau(digits, ready, ["gd"])
    assert (varied.std("sample") > 0).any()
    for vary in ({"vary": "init"},):
        with pytest.raises(ValueError, match="so members that differ in it alone are no members; choose vary: batch"):
            tau(digits, ready, ["gd"], **vary)
    with pytest.raises(ValueError, match="are no members"):
        attribute(samplers.crossed(ready, digits, RECIPE, members=4, checkpoints=1), "gd", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_settings_of_this_process_do_not_matter(digits, workers):
    expected = tau(digits, lambda task, seed: plain())
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.set_grad_enabled(False)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tau(digits, lambda task, seed: plain(), workers=workers)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.set_grad_enabled(True)
    np.testing.assert_array_equal(found, expected)


MODULE = """
from torch import nn
SLOPE = 0.1
def network(task, seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.LeakyReLU(SLOPE), nn.Linear(8, 3))
"""
CHANGED = {
    "a setting": "own_module.SLOPE = 0.9",
    "a replaced function": "own_module.nn.LeakyReLU = own_module.nn.SELU",
    "an edited module": "text = file.read_text(); file.write_text(text.replace('0.1', '0.9')); reload(own_module);"
    " file.write_text(text)",
}
TWO_WORKERS = """
import sys
from importlib import reload
from pathlib import Path
from tdalib import Recipe, attribute, data, deep_ensemble
import own_module
file = Path("own_module.py")
exec(sys.argv[1])
task = data.load("mnist3", train_per_class=2, test_per_class=2)
posterior = deep_ensemble(own_module.network, task, Recipe(epochs=2), members=2, checkpoints=1)
attribute(posterior, "gd", workers=1)
try:
    attribute(posterior, "gd", workers=2)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_workers_that_do_not_know_of_a_change_are_found_out(tmp_path, change):
    (tmp_path / "own_module.py").write_text(MODULE)
    python = [sys.executable, "-B", "-c", TWO_WORKERS, change]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True)
    assert "in a worker the outputs of a few points are others than in this process" in done.stdout, done.stderr


class Encoder(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(28, 4, 16, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(784, 3)

    def forward(self, x):
        return self.head(self.layer(x[:, 0]).flatten(1))


class Of(nn.Module):
    """Something made of a plain network's outputs and inputs."""

    def __init__(self, made):
        super().__init__()
        self.plain, self.made = plain(), made

    def forward(self, x):
        return self.made(self, self.plain(x), x)


class Running(Of):
    """A mean kept over the batches of training, in a buffer or in an attribute."""

    def __init__(self, buffer, share=0.1):
        super().__init__(None)
        self.share = share
        if buffer:
            self.register_buffer("mean", torch.zeros(784))
        else:
            self.mean = torch.zeros(784)

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.mean.mul_(1 - self.share).add_(self.share * x.mean(0).detach())
        return self.plain(x - self.mean)


class ActNorm(Of):
    """Scaled by the first batch."""

    def __init__(self):
        super().__init__(None)
        self.register_buffer("scale", torch.zeros(1))

    def forward(self, x):
        if self.scale == 0:
            self.scale.fill_(float(x.std()))
        return self.plain(x / self.scale)


class Memory(Of):
    """The last batch is remembered."""

    def forward(self, x):
        outputs = self.plain(x)
        seen = getattr(self, "seen", outputs.detach().mean(0))
        if self.training:
            self.seen = outputs.detach().mean(0)
        return outputs - 0.1 * seen


def in_training(made):
    return lambda self, outputs, x: made(outputs) if self.training else outputs


class Padded(nn.Module):
    """A recurrent network with dropout on sequences of several lengths, packed."""

    def __init__(self):
        super().__init__()
        self.layers = nn.GRU(28, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        lengths = 10 + (x.flatten(1).sum(1).abs().long() % 18)
        packed = nn.utils.rnn.pack_padded_sequence(x[:, 0], lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.layers(packed)[1][-1])


class Positive(nn.Module):
    """A scale of which the root is taken, and a statistic that is not there yet."""

    def __init__(self):
        super().__init__()
        self.plain, self.scale = plain(), nn.Parameter(torch.tensor([0.01]))
        self.register_buffer("later", torch.tensor(torch.nan))

    def forward(self, x):
        return self.plain(x) / self.scale.sqrt()


def offset(by):
    def made(self, outputs, x):
        return outputs - 0.5 * outputs.mean(0) + by

    return lambda: Of(made)


BESIDE = "gives a point other outputs"
COUPLED = {
    "attention without batch_first": (lambda: Encoder(False), BESIDE),
    "a centred batch": (lambda: Of(lambda self, outputs, x: outputs - outputs.mean(0)), BESIDE),
    "a softmax over points": (lambda: Of(lambda self, outputs, x: outputs.softmax(0)), BESIDE),
    "divided by the largest": (lambda: Of(lambda self, outputs, x: outputs / outputs.abs().max()), BESIDE),
    "mixed with the next": (lambda: Of(lambda self, outputs, x: outputs + 0.1 * outputs.roll(1, 0)), BESIDE),
    "mixed in training": (lambda: Of(in_training(lambda outputs: 0.9 * outputs + 0.1 * outputs.flip(0))), BESIDE),
    "centred in training": (lambda: Of(in_training(lambda outputs: outputs - outputs.mean(0))), BESIDE),
    "a large offset": (offset(1e4), BESIDE),
    "a class all but ruled out": (offset(torch.tensor([0, 0, -1e9])), BESIDE),
    "sorted points": (lambda: Of(lambda self, outputs, x: outputs.sort(0).values), BESIDE),
    "a cumulative sum": (lambda: Of(lambda self, outputs, x: outputs.cumsum(0)), BESIDE),
    "a running mean": (lambda: Running(True), "in training the model keeps something of the points in 'mean'"),
    "a running mean of the last batch": (lambda: Running(True, 1.0), "keeps something of the points in 'mean'"),
    "a running mean in an attribute": (lambda: Running(False), "neither parameter nor buffer"),
    "the first batch's scale": (lambda: ActNorm(), "keeps something|other outputs"),
    "the last batch remembered": (lambda: Memory(None), "neither parameter nor buffer|other outputs"),
    "instance norm that keeps statistics": (
        lambda: nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), *plain()),
        "in training the model keeps something of the points in '0.running_mean'",
    ),
    "batch norm": (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 3)), "batch norm couples"),
    "random numbers in eval mode": (
        lambda: Of(lambda self, outputs, x: outputs + torch.randn_like(outputs)),
        "gives other outputs at each call, in eval mode too",
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_points_that_are_not_seen_by_themselves_are_refused(digits, tmp_path, name):
    build, said = COUPLED[name]
    with pytest.raises(ValueError, match=said):
        attribute(
            deep_ensemble(lambda t, s: build(), digits, RECIPE, members=2, checkpoints=1), "gd", path=tmp_path / "a"
        )
    assert not (tmp_path / "a").exists()


def weight_normed(task, seed):
    network = plain()
    nn.utils.parametrizations.weight_norm(network[1])
    return network


def spectral(task, seed):
    network = plain()
    nn.utils.parametrizations.spectral_norm(network[1])
    return network


class Viewed(nn.Module):
    """As tutorials write it: .view after a convolution."""

    def __init__(self, flattened):
        super().__init__()
        self.conv, self.dense, self.flattened = nn.Conv2d(1, 4, 5), nn.Linear(4 * 24 * 24, 3), flattened

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.dense(x.flatten(1) if self.flattened else x.view(x.shape[0], -1))


FINE = {
    "attention with batch_first": lambda t, s: Encoder(True),
    "weight norm": weight_normed,
    "spectral norm": spectral,
    "dropout": lambda t, s: nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(784, 3)),
    "layer and group norm": lambda t, s: nn.Sequential(
        nn.GroupNorm(1, 1), nn.Flatten(), nn.LayerNorm(784), nn.Linear(784, 3)
    ),
    "instance norm": lambda t, s: nn.Sequential(nn.InstanceNorm2d(1), *plain()),
    "packed sequences": lambda t, s: Padded(),
    "a positive scale": lambda t, s: Positive(),
    "a head that starts at 0": lambda t, s: nn.Sequential(*plain(), nn.Linear(3, 3)),
    "a view after a convolution": lambda t, s: Viewed(False),
}


@pytest.mark.filterwarnings("ignore::tdalib.networks.SlowerPath")
@pytest.mark.parametrize("name", FINE)
def test_what_sees_points_by_themselves_is_served_alike_by_any_workers(digits, name):
    found = tau(digits, FINE[name])
    assert found.notnull().all()
    np.testing.assert_array_equal(found, tau(digits, FINE[name], workers=2))


def test_a_view_gives_what_flatten_gives(digits):
    found, expected = (tau(digits, lambda t, s, flat=flat: Viewed(flat)) for flat in (False, True))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(abs(expected).max()))


@pytest.mark.filterwarnings("ignore:the model starts from the same weights")
def test_a_network_that_cannot_be_sent_is_said_so(digits):
    ready = weight_normed(digits, 0)
    with pytest.raises(ValueError, match=r"cannot be sent to workers: .*; give the model as a function \(task, seed\)"):
        tau(digits, ready, workers=2)


def greedy(draw, task):
    """A method that changes all it can reach: θ, the network, the points, its options, torch's state."""
    losses = draw.losses(task.train)
    optimizer = torch.optim.SGD([p.requires_grad_() for p in draw.theta.values()], lr=1.0)
    outputs = draw.outputs(draw.theta, task.test.inputs)
    task.objective.loss(outputs, task.test.targets).sum().backward()
    optimizer.step()
    for p in draw.model.parameters():
        p.data.zero_()
    task.train.inputs.zero_()
    task.test.targets.zero_()
    task.train.labels["class"][:] = "none"
    draw.model.train()
    torch.manual_seed(0)
    return torch.outer(losses, losses[: len(task.test)])


def greedy_with_all(members, task):
    for draws in members:
        for draw in draws:
            for p in draw.theta.values():
                p.zero_()
    task.test.inputs.zero_()
    return torch.zeros(len(members), len(task.train), len(task.test))


def greedy_with_a_run(run, task):
    for draw in run.draws:
        for p in draw.theta.values():
            p.zero_()
    task.train.inputs.zero_()
    return torch.zeros(len(run.draws), len(task.train), len(task.test))


GREEDY = {"draw": greedy, "posterior": greedy_with_all, "run": greedy_with_a_run}


@pytest.mark.parametrize("scope", GREEDY)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_method_does_reaches_no_other(digits, scope, workers, monkeypatch):
    name = "greedy"
    monkeypatch.setitem(attributors.METHODS, name, Method(name, GREEDY[scope], "1", scope, "sum"))
    fingerprint = digits.fingerprint()
    expected = tau(digits, "mlp")
    found = tau(digits, "mlp", [name, *METHODS], workers=workers)
    np.testing.assert_array_equal(found[..., 1:], expected)
    assert digits.fingerprint() == fingerprint and digits.train.labels["class"][0] != "none"


def test_options_that_a_method_changes_stay_its_own(digits, monkeypatch):
    def hungry(draw, task, *, taken: list = ()):
        taken.append(1)
        return torch.full((len(task.train), len(task.test)), float(len(taken)))

    monkeypatch.setitem(attributors.METHODS, "hungry", Method("hungry", hungry, "1", sets="sum"))
    posterior = deep_ensemble("logreg", digits, RECIPE, members=2, checkpoints=2)
    given = {"hungry": {"taken": [0]}}
    assert (attribute(posterior, "hungry", options=given, workers=1).tau == 2).all() and given == {
        "hungry": {"taken": [0]}
    }


def test_want_of_memory_in_a_method_is_no_fault_of_it(digits, monkeypatch):
    def hungry(draw, task):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setitem(attributors.METHODS, "hungry", Method("hungry", hungry, "1", sets="sum"))
    with pytest.raises(torch.OutOfMemoryError):
        tau(digits, "mlp", ["hungry"])


def test_a_single_logit_for_two_classes_says_what_to_do():
    stream = np.random.default_rng(0)
    task = data.from_arrays(stream.normal(size=(8, 4)), np.arange(8) % 2, stream.normal(size=(4, 4)), np.arange(4) % 2)
    with pytest.raises(ValueError, match="the model has 1 outputs; the 2 classes need one each"):
        tau(task, lambda t, s: nn.Linear(4, 1))


SCRIPT = """
from tdalib import Recipe, attribute, data, deep_ensemble
task = data.load("mnist3", train_per_class=2, test_per_class=2)
posterior = deep_ensemble("logreg", task, Recipe(epochs=2), members=2, checkpoints=1)
"""
RUN = 'print(attribute(posterior, "gd", scheduler="local", workers=1).tau.shape)'


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_to_have_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + RUN)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 1
    (last,) = done.stderr.strip().splitlines()[-1:]
    assert (
        last.startswith("ValueError: scheduler: local starts workers that run")
        and '`if __name__ == "__main__":`' in last
    )
    script.write_text(SCRIPT + f'if __name__ == "__main__":\n    {RUN}')
    assert subprocess.run([sys.executable, script], capture_output=True, text=True).stdout == "(2, 6, 6, 1)\n"


def test_fewer_points_than_are_looked_at(digits):
    few = replace(digits, train=digits.train[[0, 2, 4]], test=digits.test[:1])
    assert tau(few, "mlp", ["gd"]).sizes["train"] == 3


class Counted(nn.Module):
    """It cools a little at every pass of training."""

    def __init__(self):
        super().__init__()
        self.plain, self.count = plain(), 0

    def forward(self, x):
        self.count += self.training
        return self.plain(x) * np.exp(-1e-4 * self.count)


class Fitted(nn.Module):
    """It centres by the first points that it sees."""

    def __init__(self):
        super().__init__()
        self.plain, self.mean = plain(), None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.mean(0, keepdim=True).detach()
        return self.plain(x - self.mean)


class Gated(nn.Module):
    """The batch's mean comes in through a gate that is all but shut at first."""

    def __init__(self):
        super().__init__()
        self.plain, self.gate = plain(), nn.Parameter(torch.tensor(1e-4))

    def forward(self, x):
        outputs = self.plain(x)
        return outputs + self.gate * outputs.mean(0)


def changed(change):
    def build(task, seed):
        network = plain()
        change(network)
        return network

    return build


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain, self.filter = plain(), nn.Parameter(torch.ones(3, dtype=torch.cfloat))

    def forward(self, x):
        return (self.plain(x) * self.filter).real


QUIETLY_WRONG = {
    "a slow counter": (lambda t, s: Counted(), "keeps something from one pass to the next"),
    "fitted to the first points": (lambda t, s: Fitted(), "keeps something from one pass to the next"),
    "a gate that is shut at first": (lambda t, s: Gated(), BESIDE),
    "a hook on a gradient": (
        changed(lambda network: network[1].weight.register_hook(lambda g: 0 * g)),
        "a hook on the gradient of '1.weight', which no copy keeps",
    ),
    "complex parameters": (lambda t, s: Spectral(), "complex parameters"),
    "several GPUs": (lambda t, s: nn.DataParallel(plain()), "give the module inside, .module"),
}


@pytest.mark.parametrize("name", QUIETLY_WRONG)
def test_what_would_be_wrong_without_a_word_is_refused(digits, name):
    build, said = QUIETLY_WRONG[name]
    with pytest.raises(ValueError, match=said):
        tau(digits, build, ["gd"])


class Dropped(nn.Module):
    """A layer is passed over at random, by a generator that is not torch's."""

    def __init__(self, numbers):
        super().__init__()
        self.plain, self.numbers = plain(), numbers

    def forward(self, x):
        if self.training and (random.random() if self.numbers == "random" else np.random.rand()) < 0.3:  # noqa: NPY002
            return 0.5 * self.plain(x)
        return self.plain(x)


@pytest.mark.parametrize("numbers", ["random", "numpy"])
def test_layers_that_are_random_by_other_generators_repeat(digits, numbers):
    one, other, by_two = (tau(digits, lambda t, s: Dropped(numbers), workers=workers) for workers in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, by_two)


def test_a_random_method_repeats(digits, monkeypatch):
    def projected(draw, task):
        random_rows = torch.randn(len(task.train), 3) + np.random.rand() + random.random()  # noqa: NPY002
        return random_rows @ torch.randn(3, len(task.test))

    monkeypatch.setitem(attributors.METHODS, "projected", Method("projected", projected, "1", sets="sum"))
    np.testing.assert_array_equal(tau(digits, "mlp", ["projected"]), tau(digits, "mlp", ["gd", "projected"])[..., 1:])


def test_a_clamped_layer_is_no_outer_product(digits):
    def clamped(task, seed):
        network = plain()
        network[1].register_forward_hook(lambda layer, given, outputs: outputs.clamp(-0.1, 0.1))
        return network

    (draw,) = deep_ensemble(clamped, digits, RECIPE, members=1, checkpoints=1).draws(0)
    rows = []
    for points in (digits.train, digits.test):
        network = draw.module()
        for x, y in zip(points.inputs, points.targets, strict=True):
            network.zero_grad()
            nn.functional.cross_entropy(network(x[None]), y[None]).backward()
            rows.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    expected = torch.stack(rows[:6]) @ torch.stack(rows[6:]).T
    torch.testing.assert_close(attributors.get("gd").function(draw, digits), expected, rtol=1e-4, atol=1e-5)


def balanced(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none") / torch.bincount(targets)[targets]


def noisy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none") + torch.randn(len(outputs))


def weighed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, torch.tensor([1.0, 2.0, 3.0]), reduction="none")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (balanced, "gives a point another loss alone than beside others"),
        (noisy, "gives other losses at each call"),
        (
            weighed,
            "'weighed', which is given float64, fails: RuntimeError: expected scalar type Double",
        ),
    ],
)
def test_a_loss_that_is_no_function_of_its_point_is_refused(digits, loss, said):
    with pytest.raises(ValueError, match=said):
        tau(replace(digits, objective=objectives.get(loss)), "mlp", ["gd"])


def test_one_logit_and_a_loss_of_ones_own_for_two_classes():
    def binary(outputs, targets):
        given = targets.to(outputs)
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], given, reduction="none")

    stream = np.random.default_rng(0)
    x, y = stream.normal(size=(12, 4)), np.arange(12) % 2
    task = data.from_arrays(x[:8], y[:8], x[8:], y[8:], objective=binary)
    assert tau(task, lambda t, s: nn.Linear(4, 1)).notnull().all()


def test_arrays_that_are_changed_later_are_not_the_tasks():
    x = np.zeros((4, 3), np.float32)
    task = data.from_arrays(x, [0, 1, 0, 1], x[:2], [0, 1])
    x[:] = 5
    assert (task.x_train == 0).all()


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.ma.masked_less(np.arange(12.0).reshape(4, 3), 2), "x_train has values that are masked"),
        (np.full((4, 3), 2**63, np.uint64), "whole numbers are at most 9223372036854775807"),
    ],
)
def test_numbers_that_no_tensor_holds_are_refused(x, said):
    with pytest.raises(ValueError, match=said):
        data.from_arrays(x, [0, 1, 0, 1], x[:2], [0, 1])


def test_dropout_on_what_is_not_the_points_is_no_mask(digits):
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.drop, self.head = nn.Linear(28, 28), nn.Dropout(0.5), nn.Linear(784, 3)

        def forward(self, x):
            steps = self.drop(self.rows(x[:, 0].transpose(0, 1)))  # (T, points, 28)
            return self.head(steps.transpose(0, 1).flatten(1))

    with pytest.raises(ValueError, match="'drop' drops from something whose first dim is not the points"):
        samplers.mc_dropout(lambda t, s: Sequences(), digits, RECIPE, members=1, checkpoints=1)


class HalfPrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = plain()

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.plain(x).float()


@pytest.mark.filterwarnings("ignore::tdalib.networks.SlowerPath")
def test_a_network_of_which_one_side_takes_the_slower_path(digits):
    found = tau(digits, lambda t, s: HalfPrecision(), ["gd", "gc", "if"])
    assert found.notnull().all()
