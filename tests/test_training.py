"""The loop against plain PyTorch, and what leaving a point out means."""

import copy

import torch
import torch.nn.functional as F

from tdalib import models
from tdalib.training import Recipe, batch_order, losses, train

RECIPE = Recipe(epochs=3, batch_size=4)


def test_batches_cover_every_point_once_an_epoch():
    order = batch_order(10, RECIPE, 5)
    assert [len(batch) for batch in order[0]] == [4, 4, 2]
    assert all(sorted(torch.cat(epoch).tolist()) == list(range(10)) for epoch in order)
    assert not torch.equal(torch.cat(order[0]), torch.cat(order[1]))


def test_loop_equals_plain_pytorch(digits):
    model = models.cnn2(digits, 0)
    plain = copy.deepcopy(model)
    batches = batch_order(6, RECIPE, 1)
    kept = train(model, digits.x_train, digits.y_train, RECIPE, batches, without=2, keep=2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=5e-3)
    for epoch in batches:
        for batch in epoch:
            optimizer.zero_grad()
            rest = batch[batch != 2]  # the mean is still over the whole batch
            F.cross_entropy(plain(digits.x_train[rest]), digits.y_train[rest], reduction="sum").div(
                len(batch)
            ).backward()
            optimizer.step()
    assert len(kept) == 2
    for name, value in plain.named_parameters():
        torch.testing.assert_close(kept[-1][name], value.detach(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(kept[0]["0.weight"], kept[1]["0.weight"])


def test_same_seed_same_bytes(digits):
    runs = [
        train(models.cnn2(digits, 3), digits.x_train, digits.y_train, RECIPE, batch_order(6, RECIPE, 4))[0]
        for _ in range(2)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_losses_do_not_depend_on_the_evaluation_batch(digits, monkeypatch):
    model = models.cnn2(digits, 0)
    theta = dict(model.named_parameters())
    whole = losses(model, theta, digits.x_test, digits.y_test)
    monkeypatch.setattr("tdalib.training.EVAL_BATCH", 4)
    torch.testing.assert_close(losses(model, theta, digits.x_test, digits.y_test), whole)
    assert not whole.requires_grad
