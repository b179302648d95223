"""Optimisers and schedules against torch's own loop, to the bit; and methods that use or refuse them."""

import pytest
import torch
import torch.nn.functional as F

from tdalib import Recipe, attribute, attributors, deep_ensemble, models, samplers
from tdalib.training import batch_order

OPTIMIZERS = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {}),
    "sgd with momentum": (torch.optim.SGD, {"momentum": 0.9}),
}


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_torchs_own_loop_to_the_bit(digits, name, schedule):
    recipe = Recipe(4, 4, 0.01, 0.02, schedule, name.split()[0], momentum=0.9 if "momentum" in name else 0.0)
    posterior = deep_ensemble("cnn2", digits, recipe, members=1, checkpoints=1)
    member = posterior.members[0]
    model = models.cnn2(digits, member.init_seed)
    kind, options = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.02, fused=True, **options)
    batches = sum(batch_order(6, recipe, member.batch_seed), [])
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / len(batches) if schedule == "linear" else 1
    )
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(digits.x_train[batch]), digits.y_train[batch], reduction="none").mean().backward()
        optimizer.step()
        scheduler.step()
    (draw,) = posterior.draws(0)
    assert all(torch.equal(draw.theta[key], p) for key, p in model.named_parameters())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_ats_steps_as_the_recipe_does(digits, optimizer):
    recipe = Recipe(2, 4, 0.01, 0.02, optimizer=optimizer, momentum=0.5 if optimizer == "sgd" else 0.0)
    (draw,) = deep_ensemble("logreg", digits, recipe, members=1, checkpoints=1).draws(0)
    module = draw.module()
    step = OPTIMIZERS[optimizer][0](module.parameters(), lr=0.01, weight_decay=0.02, fused=True)
    F.cross_entropy(module(digits.x_train[2:3]), digits.y_train[2:3]).backward()
    step.step()
    after = F.cross_entropy(module(digits.x_test).double(), digits.y_test, reduction="none").detach()
    expected = (draw.losses(digits.test) - after).float()
    torch.testing.assert_close(attributors.one_more_step(draw, digits)[2], expected, rtol=1e-5, atol=1e-7)


def test_methods_that_need_the_weight_decay_in_the_loss_refuse_adamw(digits):
    recipe = Recipe(2, 4, optimizer="adamw")
    posterior = deep_ensemble("logreg", digits, recipe, members=1, checkpoints=1)
    with pytest.raises(ValueError, match="if: without damping it needs weight_decay as a term of the loss, and adamw"):
        attribute(posterior, "if")
    result = attribute(posterior, ["loo", "ats", "if", "gd"], options={"if": {"damping": 0.01}}, workers=1)
    assert result.tau.notnull().all()
    for name in ("sgld", "sghmc", "laplace"):
        with pytest.raises(ValueError, match=f"sampler '{name}' needs weight_decay as a term of the loss, and adamw"):
            samplers.get(name)("logreg", digits, recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer: 'rmsprop' is not possible; input should be 'adam', 'adamw' or 'sgd'"),
        ({"momentum": 0.9}, "momentum: 0.9 is for sgd; optimizer 'adam' has its own"),
        ({"optimizer": "sgd", "momentum": 1}, "momentum: 1 is not possible; input should be less than 1"),
        ({"epochs": 0}, "epochs: 0 is not possible; input should be greater than or equal to 1"),
        ({"epochs": 2.5}, "epochs: 2.5 is not possible"),
        ({"batch_size": True}, "batch_size: True is not possible; it must be a number"),
        ({"learning_rate": 0}, "learning_rate: 0 is not possible; input should be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not possible"),
        ({"weight_decay": -1}, "weight_decay: -1 is not possible; input should be greater than or equal to 0"),
        ({"schedule": "cosine"}, "schedule: 'cosine' is not possible; input should be 'constant' or 'linear'"),
    ],
    ids=str,
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)
