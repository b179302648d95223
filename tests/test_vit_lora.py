"""ViT + LoRA: what is frozen, what is trained, and backbones of one's own."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tdalib import Recipe, attributors, data, deep_ensemble, experiment, models
from tdalib.attributors.gradients import inner, loss_gradients, pairwise
from tdalib.models.vit_lora import SHIPPED, LoraViT
from tdalib.training import batch_order, losses, train

RECIPE = Recipe(epochs=3, batch_size=4, schedule="linear")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as someone else would save it: other size, other normalisation, a classifier of its own."""
    folder = tmp_path_factory.mktemp("backbone")
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=48,
        patch_size=12,
        num_labels=7,
        hidden_dropout_prob=0.2,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 48, "width": 48}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def lora(request, saved):
    """The model function on one backbone or the other."""
    return models.get("vit_lora", **{"shipped": {}, "saved": {"backbone": str(saved)}}[request.param])


both = pytest.mark.parametrize("lora", ["shipped", "saved"], indirect=True)


def shaken(model):
    """θ away from the start, where LoRA's second matrix is 0."""
    stream = torch.Generator().manual_seed(0)
    return {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=stream).to(p.dtype)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@both
def test_before_training_it_is_the_backbone(digits, lora):
    model = lora(digits, 0).eval()
    folder = lora.keywords["backbone"] if hasattr(lora, "keywords") else SHIPPED
    plain = ViTForImageClassification.from_pretrained(folder).eval()
    plain.classifier = model.peft.base_model.model.classifier.modules_to_save["default"]
    pixels = ViTImageProcessor.from_pretrained(folder)(
        [Image.fromarray(np.uint8((x[0] + 1) * 127.5 + 0.5)).convert("RGB") for x in digits.x_test], return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        ours, theirs = model(digits.x_test), plain(pixels).logits
    assert ours.shape == (6, 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=5e-3)  # the processor rounds resized images to bytes


@both
def test_adapters_on_query_and_value_and_the_classifier_are_all_that_is_trained(digits, lora):
    model = lora(digits, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ((theta,),) = train(model, digits.x_train, digits.y_train, RECIPE, batch_order(6, RECIPE, 0), seed=0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(theta)
    blocks = len(model.peft.base_model.model.vit.layers)
    kinds = [name.split(".")[-3] for name in theta if "lora_" in name]
    assert sorted(kinds) == sorted(["lora_A", "lora_B"] * 2 * blocks)
    adapted = {name.split(".")[-4] for name in theta if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    rest = [name for name in theta if "lora_" not in name]
    assert [name.split("classifier")[1] for name in rest] == [
        ".modules_to_save.default.weight",
        ".modules_to_save.default.bias",
    ]
    width = theta[rest[0]].shape[1]
    assert all(p.shape in ((16, width), (width, 16)) for name, p in theta.items() if "lora_" in name)


@both
def test_gradients_of_all_examples_are_autograds_one_by_one(digits, lora):
    posterior = deep_ensemble(lora, digits, RECIPE, members=1, checkpoints=1)
    (draw,) = posterior.draws(0)
    rows = []
    for x, y in zip(digits.x_train, digits.y_train, strict=True):
        theta = {name: p.clone().requires_grad_() for name, p in draw.theta.items()}
        loss = F.cross_entropy(torch.func.functional_call(draw.model, theta, (x[None],)), y[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta.values())]))
    exact = torch.stack(rows).double()  # (n, P)
    gradients = loss_gradients(draw, digits.x_train, digits.y_train, memory=1.0)
    products = exact @ exact.T
    ours = pairwise(inner, gradients, gradients).double()
    torch.testing.assert_close(ours, products, rtol=1e-4, atol=1e-5 * products.max().item())


@pytest.mark.parametrize("stack", [1, 4])
def test_a_point_in_no_batch_has_exactly_no_effect_with_dropout_on(digits, stack, monkeypatch):
    def order(*arguments):
        return [[batch[batch != 2] for batch in epoch] for epoch in batch_order(*arguments)]

    monkeypatch.setattr(sys.modules["tdalib.samplers.deep_ensemble"], "batch_order", order)
    posterior = deep_ensemble("vit_lora", digits, RECIPE, members=1, checkpoints=2, stack=stack)
    dropouts = [m for m in posterior.draws(0)[0].model.modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.1]
    assert len(dropouts) == 12
    tau = experiment.attribute(posterior, "loo", workers=1).tau.isel(method=0)
    assert (tau.isel(train=2) == 0).all() and (tau.isel(train=3) != 0).any()


def test_dropout_is_active_in_training_alone(digits):
    model = models.vit_lora(digits, 0)
    theta = shaken(model)
    model.train()
    first, second = (torch.func.functional_call(model, theta, (digits.x_test,)) for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    at = [losses(model, theta, digits.x_test, digits.y_test) for _ in range(2)]
    assert torch.equal(*at)


def test_the_frozen_beginning_is_computed_once(digits, monkeypatch):
    seen = []
    embed = LoraViT.embed
    monkeypatch.setattr(LoraViT, "embed", lambda self, images: seen.append(len(images)) or embed(self, images))
    posterior = deep_ensemble("vit_lora", digits, RECIPE, members=2, checkpoints=1)
    result = experiment.attribute(posterior, sorted(attributors.METHODS), scheduler=None, workers=1)
    assert sum(seen) == len(digits.x_train) + len(digits.x_test)
    (draw,) = posterior.draws(1)
    gd = attributors.grad_dot(draw, digits)  # on images
    np.testing.assert_allclose(result.tau.sel({"method": "gd"})[1], gd, rtol=1e-3, atol=1e-4 * gd.abs().max())


def test_seeds_decide_adapters_and_classifier_but_not_the_backbone(digits):
    first, again, other = (models.vit_lora(digits, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differ = {name for name in first if not torch.equal(first[name], other[name])}
    assert differ == {name for name in first if "lora_A" in name or ("classifier" in name and "weight" in name)}


def test_the_shipped_backbone_is_small():
    assert (SHIPPED / "model.safetensors").stat().st_size < 4_000_000
    assert {path.name for path in SHIPPED.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_refusals(digits, blobs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text("{}")
    for backbone, message in (
        (str(tmp_path / "nowhere"), "is no folder here and not to be had from the hub"),
        (str(tmp_path), "is no ViT with its processor"),
    ):
        with pytest.raises(ValueError, match=message):
            models.vit_lora(digits, 0, backbone=backbone)
    with pytest.raises(ValueError, match="vit_lora needs images"):
        models.vit_lora(blobs, 0)
    with pytest.raises(ValueError, match="vit_lora needs images of 1 or 3 channels; the task has 2"):
        models.vit_lora(data.from_arrays(np.ones((2, 2, 8, 8)), [0, 1], np.ones((1, 2, 8, 8)), [0]), 0)
