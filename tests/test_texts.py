"""Texts: passages, token ids, and the networks that read them."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

from tdalib import Recipe, attribute, data, deep_ensemble, experiment, models
from tdalib.data.texts import SOTU, TOKENIZER
from tdalib.models.text import SHIPPED
from tdalib.networks import forward
from tdalib.objectives import IGNORED, get

SHORT = ["a tax on coal", "the army and the navy", "peace with every nation", "schools for our children"]


@pytest.fixture(scope="module")
def speeches():
    return data.load("sotu3", train_per_class=2, test_per_class=2)


@pytest.fixture(scope="module")
def language():
    return data.load("sotu3", train_per_class=2, test_per_class=1, objective="next_token")


def test_the_table_is_the_one_of_the_card():
    card = (SOTU.parent / "README.md").read_text()
    assert f"| {hashlib.sha256(SOTU.read_bytes()).hexdigest()} |" in card


def test_passages_are_the_first_of_each_class(speeches):
    table = pd.read_csv(SOTU)
    for split, points in (("train", speeches.train), ("test", speeches.test)):
        for name in speeches.classes:
            rows = table[(table["split"] == split) & (table["label"] == name)].head(2)
            of_class = points.labels["class"] == name
            assert list(points.labels["text"][of_class]) == list(rows["text"])
            assert list(points.labels["year"][of_class]) == list(rows["year"])
            assert list(points.labels["index"][of_class]) == list(rows.index)
    assert speeches.classes == ("Roosevelt", "Truman", "Clinton")


def test_train_and_test_passages_are_of_different_years():
    whole = data.load("sotu3", train_per_class=100, test_per_class=300)
    assert not set(whole.train.labels["year"]) & set(whole.test.labels["year"])


def test_tokens_say_what_the_passage_says(speeches):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    ids, mask = speeches.train.inputs["input_ids"], speeches.train.inputs["attention_mask"]
    assert ids.shape == mask.shape == (6, 64) and ids.dtype == mask.dtype == torch.int64
    assert ids.max() < len(tokenizer) == 4000
    for k, text in enumerate(speeches.train.labels["text"]):
        said = tokenizer.decode(ids[k][mask[k] == 1], skip_special_tokens=True)
        assert text.lower().startswith(said.strip())
        assert (ids[k][mask[k] == 0] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_per_class": 101}, "train_per_class: 101 is not possible; sotu3 has 1 to 100 per class"),
        ({"test_per_class": 301}, "test_per_class: 301 is not possible; sotu3 has 1 to 300 per class"),
        ({"length": 0}, "sotu3.length: 0 is not possible; input should be greater than or equal to 1"),
        ({"resize": 3}, "sotu3 has no option 'resize'"),
    ],
)
def test_what_sotu3_refuses(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.load("sotu3", **{"train_per_class": 2, "test_per_class": 2} | options)


def test_texts_of_ones_own():
    task = data.from_texts(SHORT, ["war", "war", "peace", "peace"], SHORT[:2], ["war", "peace"], length=8)
    assert task.classes == ("peace", "war") and task.y_train.tolist() == [1, 1, 0, 0]
    assert list(task.test.labels["text"]) == SHORT[:2] and task.x_train["input_ids"].shape == (4, 8)
    numbers = data.from_texts(SHORT, [0.5, 1, 2, 3], SHORT[:1], [1.0], facts={"page": ([1, 2, 3, 4], [5])})
    assert numbers.objective.name == "squared_error" and list(numbers.train.labels["page"]) == [1, 2, 3, 4]
    only = data.from_texts(SHORT, None, SHORT[:1], None, objective="next_token")
    assert only.y_train.shape == (4, 64) and only.classes == ()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"texts": ["", *SHORT[1:]]}, "text 0 of train is ''; every text must be a string that is not empty"),
        ({"test_texts": [None]}, "text 0 of test is None; every text must be a string that is not empty"),
        ({"labels": ["x", "y", "x"]}, "y_train has shape"),
        ({"test_labels": ["z"]}, "label 'z' is none of the classes x, y"),
        ({"labels": None, "test_labels": None}, "labels: None is for an objective about the texts themselves"),
        ({"tokenizer": "/nowhere"}, "tokenizer '/nowhere' is no folder or name on the hub of one"),
        ({"objective": "hinge"}, "objective 'hinge' is not known"),
    ],
)
def test_what_from_texts_refuses(change, sentence):
    given = {"texts": SHORT, "labels": list("xyxy"), "test_texts": SHORT[:1], "test_labels": ["x"]} | change
    with pytest.raises(ValueError, match=sentence) as raised:
        data.from_texts(**given)
    assert "\n" not in str(raised.value)


def test_next_token_is_the_mean_over_a_passage(language):
    network = models.gpt2(language, 0)
    ids, mask = language.x_train["input_ids"], language.x_train["attention_mask"]
    logits = forward(network.eval(), language.x_train).double()
    for k, loss in enumerate(language.objective.losses(logits, language.y_train)):
        count = int(mask[k].sum())
        log_p = logits[k].log_softmax(1)
        each = [-log_p[t, ids[k, t + 1]] for t in range(count - 1)]
        torch.testing.assert_close(loss, torch.stack(each).mean())


def test_the_gradient_of_next_token_is_autograds():
    stream = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 5, 7, dtype=torch.float64, generator=stream)
    targets = torch.tensor([[1, 2, 3, 4, IGNORED], [0, IGNORED, IGNORED, 6, IGNORED], [IGNORED] * 5])
    given = outputs.clone().requires_grad_()
    get("next_token").loss(given, targets).sum().backward()
    torch.testing.assert_close(get("next_token").residuals(outputs, targets), given.grad)


def test_next_token_needs_tokens():
    with pytest.raises(ValueError, match="objective 'next_token' needs token ids"):
        data.load("mnist3", train_per_class=1, test_per_class=1, objective="next_token")


@pytest.mark.parametrize(
    ("model", "objective", "sentence"),
    [
        ("bow", "next_token", r"next_token needs outputs \(points, T, vocabulary\); the model's are \(\d, 64\)"),
        ("gpt2", None, r"cross_entropy needs outputs \(points, classes\); the model's are \(\d, 64, 4000\)"),
    ],
)
def test_a_network_that_does_not_fit_the_objective_is_refused(model, objective, sentence):
    task = data.load("sotu3", train_per_class=1, test_per_class=1, objective=objective)
    with pytest.raises(ValueError, match=sentence):
        attribute(deep_ensemble(model, task, Recipe(epochs=1), members=1, checkpoints=1), "gd", workers=1)


@pytest.mark.parametrize("name", ["bow", "text_lora"])
def test_padding_says_nothing(speeches, name):
    network = models.get(name)(speeches, 0).eval()
    inputs = speeches.test.inputs
    other = inputs | {"input_ids": inputs["input_ids"].where(inputs["attention_mask"] == 1, 7)}
    assert (other["input_ids"] != inputs["input_ids"]).any()
    torch.testing.assert_close(forward(network, inputs), forward(network, other))


def test_bow_takes_tokens_alone(speeches):
    network = models.bow(speeches, 0).eval()
    ids = speeches.test.inputs["input_ids"]
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(forward(network, ids), forward(network, whole))


def test_text_lora_starts_from_the_backbone_and_trains_adapters_and_classifier(speeches):
    network = models.text_lora(speeches, 0)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 + 2  # A and B of query and value in two blocks, weight and bias
    assert all("lora_" in name or "classifier" in name for name in trained)
    plain = network.get_base_model()
    with network.disable_adapter():
        expected = forward(plain.eval(), speeches.test.inputs)
    torch.testing.assert_close(forward(network.eval(), speeches.test.inputs), expected)
    other = models.text_lora(speeches, 1)
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad and "original" not in name]
    assert all(torch.equal(network.get_parameter(name), other.get_parameter(name)) for name in frozen)


def test_another_kind_of_encoder_takes_the_same_path(speeches, tmp_path):
    config = DistilBertConfig(vocab_size=4000, dim=8, n_layers=2, n_heads=2, hidden_dim=16, max_position_embeddings=64)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    network = models.text_lora(speeches, 0, backbone=str(tmp_path))
    trained = {name.split(".")[-2] for name, p in network.named_parameters() if p.requires_grad and "lora" not in name}
    assert trained == {"default"}  # the copies that peft trains of pre_classifier and classifier
    assert forward(network.eval(), speeches.test.inputs).shape == (6, 3)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("bow", {"vocabulary": 10}, "bow knows tokens below 10; the task has"),
        ("gpt2", {"vocabulary": 10}, "gpt2 knows tokens below 10; the task has"),
        ("gpt2", {"heads": 3}, "gpt2.heads: 3 is not possible; it must divide width, 64"),
        ("text_lora", {"backbone": "/nowhere"}, "backbone '/nowhere' is no folder or name on the hub of a sequence"),
    ],
)
def test_what_networks_of_tokens_refuse(speeches, name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.get(name, **options)(speeches, 0)


@pytest.mark.parametrize("name", ["bow", "text_lora", "gpt2"])
def test_images_are_no_tokens(digits, name):
    with pytest.raises(ValueError, match=f"{name} needs token ids"):
        models.get(name)(digits, 0)


def test_the_backbone_is_small():
    assert (SHIPPED / "model.safetensors").stat().st_size < 4_000_000


@pytest.mark.filterwarnings("ignore::tdalib.networks.SlowerPath")
def test_all_methods_on_a_language_model(language):
    small = language.first(train=3, test=2)
    model = models.get("gpt2", width=8, depth=1, heads=1)
    posterior = deep_ensemble(model, small, Recipe(epochs=1), members=2, checkpoints=1)
    options = {"if": {"solver": "cg", "damping": 1.0}}
    result = attribute(posterior, ["loo", "ats", "gd", "gc", "if"], options=options, workers=1)
    tau = result.tau
    assert np.isfinite(tau).all() and (np.abs(tau).max(("sample", "train", "test")) > 0).all()
    assert list(result.train_text.values) == list(small.train.labels["text"])
    with pytest.raises(ValueError, match="rows, above 50,000; choose solver cg"):
        attribute(posterior, "if", workers=1)


@pytest.mark.slow
def test_bow_reaches_what_the_card_says():
    task = data.load("sotu3", train_per_class=50, test_per_class=300)
    assert experiment.accuracy(deep_ensemble("bow", task, Recipe(), members=5, checkpoints=1)).mean() > 0.7


@pytest.mark.slow
def test_text_lora_beats_bow_at_20_per_class():
    task = data.load("sotu3", train_per_class=20, test_per_class=300)
    bow, lora = (
        experiment.accuracy(deep_ensemble(name, task, Recipe(), members=3, checkpoints=1)).mean()
        for name in ("bow", "text_lora")
    )
    assert lora > bow + 0.05


def test_cross_entropy_of_next_tokens_is_torchs(language):
    logits = torch.randn(2, 64, 4000, generator=torch.Generator().manual_seed(0))
    targets = language.y_train[:2]
    expected = [F.cross_entropy(logits[k], targets[k], ignore_index=IGNORED) for k in range(2)]
    torch.testing.assert_close(language.objective.loss(logits, targets), torch.stack(expected))
