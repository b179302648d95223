"""The paper's sizes, seeds, and a model of one's own."""

import pytest
import torch
from torch import nn

from tdalib import data, models


@pytest.mark.parametrize(("name", "kernel", "parameters"), [("mnist3", 3, 225_034), ("cifar10", 5, 259_914)])
def test_cnn2_is_the_papers(name, kernel, parameters):
    task = data.load(name, train_per_class=1, test_per_class=1)
    model = models.cnn2(task, 0)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size) for c in convolutions] == [(32, (kernel, kernel)), (64, (kernel, kernel))]
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [128, 10]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(task.x_test).shape == (len(task.x_test), 10)


def test_seed_decides_the_weights_and_leaves_the_callers_state_alone(digits):
    before = torch.get_rng_state()
    first, again, other = (models.cnn2(digits, seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_image_gelu_is_gelu(layout):
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    ours, plain = models.ImageGELU()(x), nn.GELU()(x)
    torch.testing.assert_close(ours, plain, rtol=1e-14, atol=1e-14)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


def test_image_flatten_is_flatten_but_for_the_order():
    x = torch.arange(48.0).view(2, 3, 4, 2).to(memory_format=torch.channels_last)
    flat = models.ImageFlatten()(x)
    assert flat.data_ptr() == x.data_ptr() and torch.equal(flat.sort().values, nn.Flatten()(x))


def test_weights_take_the_tasks_precision(blobs):
    assert models.logreg(blobs, 0)[1].weight.dtype == torch.float64


def test_options_are_bound_to_a_registered_model(digits):
    @models.register("wide")
    def wide(task, seed, width=3):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, 3))

    assert models.get("wide", width=5)(digits, 0)[1].out_features == 5
    del models.MODELS["wide"]


def test_refusals(blobs):
    with pytest.raises(ValueError, match="model 'cnn9' is not known; choose from cnn2, logreg"):
        models.get("cnn9")
    with pytest.raises(ValueError, match="cnn2 needs images"):
        models.cnn2(blobs, 0)
    small = data.from_arrays(torch.ones(2, 1, 6, 6), [0, 1], torch.ones(1, 1, 6, 6), [0])
    with pytest.raises(ValueError, match="too small"):
        models.cnn2(small, 0)


def test_a_plain_function_is_seeded_too(digits):
    function = models.get(lambda task, seed: nn.Sequential(nn.Flatten(), nn.Linear(784, 3)))
    assert torch.equal(function(digits, 1)[1].weight, function(digits, 1)[1].weight)
    assert not torch.equal(function(digits, 1)[1].weight, function(digits, 2)[1].weight)


def test_batch_norm_is_refused(digits):
    with pytest.raises(ValueError, match="batch norm, which couples the points"):
        models.get(lambda task, seed: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 3)))(digits, 0)
