"""ViT + LoRA: what is frozen, what is trained, and backbones of one's own."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2.functional import resize
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tdalib import Recipe, attribute, data, deep_ensemble, models
from tdalib.attributors.gradients import loss_gradients, pairwise
from tdalib.models.pretrained import SHIPPED
from tdalib.networks import calls
from tdalib.training import Training, batch_order, train

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
    with torch.random.fork_rng():
        torch.manual_seed(0)
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
        embeddings = {"embeddings": model.peft.base_model.model.vit.embeddings}
        ((_, tokens),) = calls(model, embeddings, digits.x_test)["embeddings"]
        expected = plain.vit.embeddings(pixels)
        byte = plain.vit.embeddings(pixels + 1 / 255 / model.std) - expected  # the processor rounds what it resized
        ours, theirs = model(pixels * model.std * 2 + (model.mean - 0.5) * 2), plain(pixels).logits
    assert (tokens - expected).abs().max() < 2 * byte.abs().max()
    assert ours.shape == (6, 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@both
def test_adapters_on_query_and_value_and_the_classifier_are_all_that_is_trained(digits, lora):
    model = lora(digits, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (((theta, _),),) = train(Training(model, digits, RECIPE, 0))
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


def test_adapters_add_their_product_times_alpha_over_rank(digits):
    model = models.vit_lora(digits, 0).eval()
    theta = shaken(model)
    plain = ViTForImageClassification.from_pretrained(SHIPPED).eval()
    plain.classifier = torch.nn.Linear(128, 3)
    merged = dict(plain.named_parameters())
    for name, a in theta.items():
        if "lora_A" in name:
            target = name.removeprefix("peft.base_model.model.").replace(".lora_A.default", "")
            merged[target] = merged[target] + theta[name.replace("lora_A", "lora_B")] @ a * 16 / 16
        elif "classifier" in name:
            merged[f"classifier.{name.rpartition('.')[2]}"] = theta[name]
    images = digits.x_test.expand(-1, 3, -1, -1)
    pixels = resize(images, [32, 32], antialias=True)
    with torch.no_grad():
        expected = torch.func.functional_call(plain, merged, (pixels,)).logits
        ours = torch.func.functional_call(model, theta, (digits.x_test,))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


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
    gradients = loss_gradients(draw, digits.train, memory=1.0)
    products = exact @ exact.T
    ours = pairwise(gradients, gradients).double()
    torch.testing.assert_close(ours, products, rtol=1e-4, atol=1e-5 * products.max().item())


@pytest.mark.parametrize("stack", [1, 4])
def test_a_point_in_no_batch_has_exactly_no_effect_with_dropout_on(digits, stack, monkeypatch):
    def order(*arguments):
        return [[batch[batch != 2] for batch in epoch] for epoch in batch_order(*arguments)]

    monkeypatch.setattr("tdalib.training.batch_order", order)
    posterior = deep_ensemble("vit_lora", digits, RECIPE, members=1, checkpoints=2, stack=stack)
    dropouts = [m for m in posterior.draws(0)[0].model.modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.1]
    assert len(dropouts) == 12
    tau = attribute(posterior, "loo", workers=1).tau.isel(method=0)
    assert (tau.isel(train=2) == 0).all() and (tau.isel(train=3) != 0).any()


def test_dropout_is_active_in_training_alone(digits):
    model = models.vit_lora(digits, 0)
    theta = shaken(model)
    model.train()
    first, second = (torch.func.functional_call(model, theta, (digits.x_test,)) for _ in range(2))
    assert not torch.equal(first, second)
    (draw,) = deep_ensemble("vit_lora", digits, RECIPE, members=1, checkpoints=1).draws(0)
    at = [replace(draw, theta=theta).losses(digits.test) for _ in range(2)]
    assert torch.equal(*at)


def test_a_name_on_the_hub_takes_the_same_path(digits, saved, monkeypatch):
    asked = []

    def cached(repo_id, allow_patterns, local_files_only=False):
        asked.append((repo_id, local_files_only))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    ours = models.vit_lora(digits, 0, backbone="google/vit-base-patch16-224-in21k").state_dict()
    folder = models.vit_lora(digits, 0, backbone=str(saved)).state_dict()
    assert all(torch.equal(ours[name], folder[name]) for name in folder)
    assert asked == [("google/vit-base-patch16-224-in21k", True)]


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


def test_refusals(digits, blobs, saved, tmp_path, monkeypatch):
    def not_there(repo_id, allow_patterns, local_files_only=False):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", not_there)
    (tmp_path / "config.json").write_text("{}")
    shutil.copytree(saved, tmp_path / "deit")
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "deit" / "config.json").write_text(json.dumps(config | {"model_type": "deit"}))
    shutil.copytree(saved, tmp_path / "deeper")
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    shutil.copytree(saved, tmp_path / "edge")
    (tmp_path / "edge" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 48}})
    )
    shutil.copytree(saved, tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    for backbone, message in (
        ("google/vit", "'google/vit' is no folder or name on the hub of a ViT: no network"),
        (str(tmp_path), "is no folder or name on the hub of a ViT: "),
        (str(tmp_path / "deit"), "is no whole network: it is of type deit"),
        (str(tmp_path / "deeper"), "is no whole network: it is of type vit, lacks vit.layers.2"),
        (str(tmp_path / "bare"), "bare' is no folder or name on the hub of a ViT: "),
        (str(tmp_path / "edge"), "must resize to a height and a width"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            models.vit_lora(digits, 0, backbone=backbone)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="vit_lora needs images"):
        models.vit_lora(blobs, 0)
    with pytest.raises(ValueError, match="needs images .n, 1 or 3 channels, height, width.; the task has .2, 2, 8, 8."):
        models.vit_lora(data.from_arrays(np.ones((2, 2, 8, 8)), [0, 1], np.ones((1, 2, 8, 8)), [0]), 0)
