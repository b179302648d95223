"""The paper's sizes, seeds, and a model of one's own."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, models
from tdalib.models.cnn import ImageFlatten, ImageGELU
from tdalib.training import Training, train


@pytest.mark.parametrize(("name", "kernel", "parameters"), [("mnist3", 3, 225_034), ("cifar10", 5, 259_914)])
def test_cnn2_is_the_papers(name, kernel, parameters):
    task = data.load(name, train_per_class=1, test_per_class=1)
    model = models.cnn2(task, 0)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size) for c in convolutions] == [(32, (kernel, kernel)), (64, (kernel, kernel))]
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [128, 10]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(task.x_test).shape == (len(task.x_test), 10)


@pytest.mark.parametrize(
    ("name", "paddings", "parameters"), [("mnist3", [0, 2, 2], 619_786), ("cifar10", [0, 0, 2], 620_362)]
)
def test_cnn3_is_the_papers(name, paddings, parameters):
    task = data.load(name, train_per_class=1, test_per_class=1)
    model = models.cnn3(task, 0)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.padding[0]) for c in convolutions] == [
        (channels, (3, 3), padding) for channels, padding in zip((32, 64, 128), paddings, strict=True)
    ]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model) == 3
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [256, 10]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(task.x_test).shape == (len(task.x_test), 10)


def test_mlp_has_the_depth_width_and_skips_asked_for(digits):
    plain, skipping = (models.get("mlp", depth=3, width=16, skip=skip)(digits, 0) for skip in (False, True))
    assert (
        models.parameter_count(plain) == f"{784 * 16 + 16 + 2 * (16 * 16 + 16) + 16 * 3 + 3:,} parameters, all trained"
    )
    x = plain[:3](digits.x_train)  # the first hidden layer, the same in both
    torch.testing.assert_close(skipping[:3](digits.x_train), x)
    torch.testing.assert_close(skipping[3](x), x + plain[3](x))


def test_seed_decides_the_weights_and_leaves_the_callers_state_alone(digits):
    before = torch.get_rng_state()
    first, again, other = (models.cnn2(digits, seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_image_gelu_is_gelu(layout):
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    ours, plain = ImageGELU()(x), nn.GELU()(x)
    torch.testing.assert_close(ours, plain, rtol=1e-14, atol=1e-14)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


def test_image_flatten_is_flatten_but_for_the_order():
    x = torch.arange(48.0).view(2, 3, 4, 2).to(memory_format=torch.channels_last)
    flat = ImageFlatten()(x)
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
    with pytest.raises(ValueError, match="model 'cnn9' is not known; choose from bow, cnn2, cnn3, gpt2, logreg"):
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


def normed(norm):
    return models.get(lambda task, seed: nn.Sequential(norm, nn.Flatten(), nn.Linear(784, 3)))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False).eval()], ids=str)
def test_batch_norm_is_refused(digits, norm):
    with pytest.raises(
        ValueError, match=r"return tdalib.models.with_group_norm\(network\), or network.eval\(\) to keep"
    ):
        normed(norm)(digits, 0)


def plain_resnet(task, seed):
    return torchvision.models.resnet18(num_classes=10)


def resnet_with_group_norm(task, seed):
    return models.with_group_norm(plain_resnet(task, seed))


def resnet_with_fixed_statistics(task, seed):
    return plain_resnet(task, seed).eval()


@pytest.mark.parametrize("network", [resnet_with_group_norm, resnet_with_fixed_statistics])
def test_a_resnet_takes_either_way_out_of_batch_norm(network):
    task = data.load("cifar10", train_per_class=1, test_per_class=1).first(train=3, test=2)
    with pytest.raises(ValueError, match="batch norm couples"):
        deep_ensemble(plain_resnet, task, Recipe(epochs=1), members=1, checkpoints=1).draws(0)
    posterior = deep_ensemble(network, task, Recipe(epochs=2, batch_size=2), members=1, checkpoints=1)
    (draw,) = posterior.draws(0)
    alone = torch.cat([draw(task.x_test[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(draw(task.x_test), alone)
    removals = {"points": [1]}
    tau = attribute(posterior, ["loo", "gd", "gc"], removals=removals, workers=1).tau
    assert (tau != 0).all() and np.isfinite(tau).all()


def test_group_norm_keeps_channels_and_everything_else():
    network = models.with_group_norm(nn.Sequential(nn.Conv2d(1, 48, 3), nn.BatchNorm2d(48, affine=False)))
    assert isinstance(network[1], nn.GroupNorm) and network[1].num_groups == 16 and not network[1].affine
    assert isinstance(network[0], nn.Conv2d)


def test_batch_norm_with_fixed_statistics_stays_fixed_in_training(digits):
    model = normed(nn.BatchNorm2d(1).eval())(digits, 0)
    ((state,),) = train(Training(model, digits, Recipe(epochs=2, batch_size=3), 0))
    assert model[0].running_mean == 0 and model[0].num_batches_tracked == 0
    assert state.rest["0.running_mean"] == 0 and state.rest["0.num_batches_tracked"] == 0
    assert state.theta["0.weight"] != 1


@pytest.mark.parametrize("name", ["cnn2", "cnn3", "logreg", "mlp", "vit_lora"])
def test_every_model_works_with_every_attributor_alone_and_in_a_stack(name):
    task = data.load("cifar10", train_per_class=1, test_per_class=1).first(train=4, test=3)
    alone, stack = (
        attribute(
            deep_ensemble(name, task, Recipe(epochs=2, batch_size=2), members=1, checkpoints=1, stack=stack),
            sorted(attributors.METHODS),
            workers=1,
        )
        for stack in (None, 5)
    )
    assert set(alone.method.values) == {"loo", "ats", "if", "gd", "gc"}
    assert alone.tau.notnull().all() and (abs(alone.tau).max(["sample", "train", "test"]) > 0).all()
    np.testing.assert_allclose(stack.loss_without, alone.loss_without, rtol=1e-3, atol=1e-3)
