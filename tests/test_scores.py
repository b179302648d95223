"""Finished scores of elsewhere: what comes out, that libraries' numbers stay what they are, and the verdict."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from safetensors.torch import save_file
from simulated import simulate
from torch.utils.data import DataLoader, TensorDataset

from tdalib import Recipe, attribute, data, deep_ensemble, from_scores, plots, stats, verdict
from tdalib.workers import exact_repeat

MATRIX = np.arange(6, dtype=float).reshape(2, 3)  # (train, test)


def seeds(count, mean, noise=1.0, seed=0):
    """Seed → scores, which scatter around their mean, (train, test)."""
    stream = np.random.default_rng(seed)
    return {10 + k: mean + noise * stream.normal(size=mean.shape) for k in range(count)}


def test_scores_come_out_labelled_with_a_sample_for_each_seed():
    given = {7: MATRIX, np.int64(3): 10 * MATRIX}
    classes = {"train_class": ["cat", "dog"], "test_index": [5, 6, 9]}
    result = from_scores(given, unit="nats", labels=classes, method="mine")
    assert result.tau.dims == ("sample", "train", "test", "method") and result.tau.dtype == np.float32
    assert result.tau.shape == (2, 2, 3, 1) and result.method.values.tolist() == ["mine"]
    np.testing.assert_array_equal(result.tau[..., 0], [MATRIX, 10 * MATRIX])
    for name, values in {"member": [0, 1], "init_seed": [7, 3], "batch_seed": [7, 3], "checkpoint": [1, 1]}.items():
        assert result[name].dims == ("sample",) and result[name].values.tolist() == values
    assert result.train_class.dims == ("train",) and result.train_class.values.tolist() == ["cat", "dog"]
    assert result.test_index.dims == ("test",) and result.test_index.values.tolist() == [5, 6, 9]
    assert result.attrs["units"] == result.tau.attrs["units"] == '{"mine": "nats"}'
    assert result.attrs["sign"] == "tau > 0: the train point helps"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("layout", ["train,test", "test,train"])
def test_scores_are_transposed_and_negated_where_asked(layout, sign):
    given = MATRIX if layout == "train,test" else MATRIX.T
    result = from_scores({0: given, 1: 2 * given}, layout, sign)
    np.testing.assert_array_equal(result.tau[..., 0], [sign * MATRIX, sign * 2 * MATRIX])


@pytest.mark.parametrize(
    "given",
    [
        MATRIX.astype(int),
        MATRIX.tolist(),
        pd.DataFrame(MATRIX),
        torch.tensor(MATRIX, requires_grad=True),
        torch.tensor(MATRIX).int(),
        torch.tensor(MATRIX, dtype=torch.bfloat16),
        torch.tensor(MATRIX).T.contiguous().T,
    ],
    ids=["whole numbers", "lists", "DataFrame", "with a gradient", "int tensor", "bfloat16", "a view"],
)
def test_tensors_and_arrays_are_taken_alike(given):
    xr.testing.assert_identical(from_scores({0: given, 1: 2 * MATRIX}), from_scores({0: MATRIX, 1: 2 * MATRIX}))


@pytest.mark.parametrize("kind", [str, Path])
def test_modules_of_a_file_are_summed(tmp_path, kind):
    first, second = (torch.tensor(MATRIX.T.copy(), dtype=torch.float32) * k for k in (1, 10))
    save_file({"fc1": first, "fc2": second}, tmp_path / "0.safetensors")
    save_file({"all_modules": first.bfloat16()}, tmp_path / "1.safetensors")
    result = from_scores({seed: kind(tmp_path / f"{seed}.safetensors") for seed in (0, 1)}, "test,train")
    np.testing.assert_array_equal(result.tau[..., 0], [11 * MATRIX, MATRIX])


def test_methods_are_put_together_by_concat():
    scores = seeds(5, np.random.default_rng(1).normal(size=(8, 6)))
    one = from_scores(scores, method="one")
    other = from_scores({seed: -2 * matrix for seed, matrix in scores.items()}, method="other")
    both = xr.concat([one, other], "method")
    assert both.method.values.tolist() == ["one", "other"] and both.tau.dims == one.tau.dims
    np.testing.assert_array_equal(both.tau[..., 1], -2 * both.tau[..., 0])
    correlation = stats.agreement(both.tau, resamples=2).correlation.sel(statistic="mean", kind="pearson")
    np.testing.assert_allclose(correlation, [[1, -1], [-1, 1]], atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """A task of two clouds, the first train point with the wrong label; two trainings; and τ of gd, (2, 8, 5)."""
    stream = np.random.default_rng(0)
    y_train, y_test = np.arange(8) % 2, np.arange(5) % 2
    x_train, x_test = (np.eye(4)[y] * 2 + 0.3 * stream.normal(size=(len(y), 4)) for y in (y_train, y_test))
    y_train[0] = 1
    task = data.from_arrays(x_train.astype(np.float32), y_train, x_test.astype(np.float32), y_test)
    posterior = deep_ensemble("mlp", task, Recipe(epochs=40, batch_size=4), members=2, checkpoints=1)
    with exact_repeat():  # on one thread, as `attribute` does
        draws = [draw for k in range(2) for draw in posterior.draws(k)]
    return task, draws, attribute(posterior, "gd", workers=1).tau.values[..., 0]


def points(task):
    return TensorDataset(task.x_train, task.y_train), TensorDataset(task.x_test, task.y_test)


def same_and_right(result, own, trained):
    """τ of each seed is the library's own (train, test) and that of gd; the train point with the wrong label harms."""
    task, draws, gd = trained
    assert result.init_seed.values.tolist() == [draw.init_seed for draw in draws]
    equal_and_signed(result.tau.values[..., 0], own, gd, task.y_test)


POINT_BY_POINT = {"loss_fn": torch.nn.CrossEntropyLoss(reduction="sum"), "sample_wise_grads_per_batch": True}


def equal_and_signed(tau, own, exact, y_test):
    """τ (seed, train, test) of the first seed is `own`, of all `exact`; the first point harms, the third helps."""
    np.testing.assert_array_equal(tau[0], own)
    np.testing.assert_allclose(tau, exact, rtol=1e-3, atol=1e-6 * abs(exact).max())
    alike = y_test == 0  # the class that the point looks like
    assert (tau[:, 0, alike].mean(1) < 0).all() and (tau[:, 2, alike].mean(1) > 0).all()  # and one with the right label


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_scores_of_captum_are_its_own_and_those_of_gd(trained):
    influence = pytest.importorskip("captum.influence")
    task, draws, _ = trained
    train, _ = points(task)

    def tracin(draw):
        own = influence.TracInCP(draw.module(), train, ["only"], lambda model, _: 1.0, batch_size=8, **POINT_BY_POINT)
        return own.influence((task.x_test, task.y_test))

    scores = {draw.init_seed: tracin(draw) for draw in draws}
    result = from_scores(scores, "test,train")
    same_and_right(result, tracin(draws[0]).T, trained)


def test_scores_of_dattri_are_its_own_and_those_of_gd(trained):
    tracin = pytest.importorskip("dattri.algorithm.tracin")
    dattri = pytest.importorskip("dattri.task")
    task, draws, _ = trained

    def attributed(draw):
        model = draw.module()

        def loss(theta, pair):
            x, y = pair
            return F.cross_entropy(torch.func.functional_call(model, theta, (x[None],)), y[None])

        chosen = dattri.AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
        attributor = tracin.TracInAttributor(chosen, weight_list=torch.ones(1), normalized_grad=False)
        attributor.projector_kwargs = None  # it projects at random unless told otherwise here
        return attributor.attribute(*(DataLoader(part, batch_size=8) for part in points(task)))

    scores = {draw.init_seed: attributed(draw) for draw in draws}
    result = from_scores(scores, "train,test")
    same_and_right(result, attributed(draws[0]), trained)


@pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not available:UserWarning")
def test_scores_of_kronfluence_are_its_own_and_those_of_gd(trained, tmp_path):
    """Read from the files that it leaves: of all modules together, and of the second seed for each module."""
    analysis = pytest.importorskip("kronfluence.analyzer")
    arguments = pytest.importorskip("kronfluence.arguments")
    own_task = pytest.importorskip("kronfluence.task").Task
    task, draws, _ = trained
    train, test = points(task)

    class Classification(own_task):
        def compute_train_loss(self, batch, model, sample=False):
            x, y = batch
            return F.cross_entropy(model(x), y, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    own, files = {}, {}
    for draw, by_module in zip(draws, (False, True), strict=True):
        asked = Classification()
        model = analysis.prepare_model(draw.module(), asked)
        place = {"output_dir": str(tmp_path), "cpu": True, "disable_tqdm": True, "log_level": 40}
        analyzer = analysis.Analyzer(f"seed{draw.init_seed}", model, asked, **place)
        identity = arguments.FactorArguments(strategy="identity")
        analyzer.fit_all_factors("f", train, per_device_batch_size=8, factor_args=identity)
        sizes = {"per_device_query_batch_size": 8, "per_device_train_batch_size": 8}
        wanted = arguments.ScoreArguments(compute_per_module_scores=by_module)
        analyzer.compute_pairwise_scores("s", "f", test, train, score_args=wanted, **sizes)
        own[draw.init_seed] = analyzer.load_pairwise_scores("s")
        files[draw.init_seed] = tmp_path / f"seed{draw.init_seed}" / "scores_s" / "pairwise_scores.safetensors"
    first, second = own.values()
    assert len(first) == 1 and len(second) > 1
    result = from_scores(files, "test,train")
    same_and_right(result, first["all_modules"].T, trained)
    summed = sum(scores.double() for scores in second.values())
    np.testing.assert_allclose(result.tau[1, ..., 0], summed.T, rtol=1e-5, atol=1e-6)


def gradients(function, parameters, inputs, labels):
    """Of `function(input, label)` at each point, one after another, (point, P)."""
    rows = [torch.autograd.grad(function(x, y), parameters) for x, y in zip(inputs, labels, strict=True)]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def trak(draw, task, penalty):
    """TRAK of the last layer in float64, (train, test): no projection, traker's scaling of gradients and inverse.

    The model's output is the margin log p/(1 - p) of the label; Park et al. 2023, arXiv:2303.14186.
    """
    model = draw.module().double()
    last = list(model[-1].parameters())
    size = sum(p.numel() for p in last)

    def margin(x, y):
        logits = model(x[None])[0]
        others = torch.arange(len(logits)) != y
        return logits[y] - logits[others].logsumexp(0)

    train, test = (
        gradients(margin, last, x.double(), y) / size**0.5
        for x, y in ((task.x_train, task.y_train), (task.x_test, task.y_test))
    )
    inverse = torch.linalg.inv(train.T @ train + penalty * torch.eye(size))
    inverse = inverse / inverse.abs().mean()
    probability = model(task.x_train.double()).softmax(1).gather(1, task.y_train[:, None])  # (train, 1)
    return ((1 - probability) * (train @ inverse @ test.T)).detach().numpy()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_scores_of_traker_are_its_own_and_those_of_autograd(trained, tmp_path):
    traker = pytest.importorskip("trak")
    projectors = pytest.importorskip("trak.projectors")
    task, draws, _ = trained
    train, test = (task.x_train, task.y_train), (task.x_test, task.y_test)

    def finished(draw, folder, model_id=0):
        model = draw.module()
        last = [f"{len(model) - 1}.{name}" for name, _ in model[-1].named_parameters()]
        exact = {"grad_wrt": last, "projector": projectors.NoOpProjector(device="cpu"), "use_half_precision": False}
        quiet = {"save_dir": folder, "device": "cpu", "logging_level": 40}
        one = traker.TRAKer(model, "image_classification", len(train[0]), lambda_reg=1.0, **exact, **quiet)
        one.load_checkpoint(model.state_dict(), model_id)
        one.featurize(train, num_samples=len(train[0]))
        one.finalize_features()
        one.start_scoring_checkpoint("test", model.state_dict(), model_id, len(test[0]))
        one.score(test, num_samples=len(test[0]))
        return one.finalize_scores("test")

    scores = {draw.init_seed: finished(draw, tmp_path / f"seed{draw.init_seed}") for draw in draws}
    result = from_scores(scores, "train,test")
    exact = np.stack([trak(draw, task, penalty=1.0) for draw in draws])
    same_and_right(result, finished(draws[0], tmp_path / "again"), (task, draws, exact))
    mixed = finished(draws[1], tmp_path / "again", model_id=1)  # one folder for both: an average of them
    assert abs(mixed - exact[1]).max() > 0.01 * abs(exact).max()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_scores_of_quanda_are_its_own_and_those_of_gd(trained):
    quanda = pytest.importorskip("quanda")
    task, draws, _ = trained
    train, _ = points(task)

    def explained(draw):
        loaded = {"checkpoints": ["only"], "checkpoints_load_func": lambda model, _: 1.0}
        explainer = quanda.CaptumTracInCP(draw.module(), train, batch_size=8, **loaded, **POINT_BY_POINT)
        return explainer.explain(task.x_test, task.y_test)

    scores = {draw.init_seed: explained(draw) for draw in draws}
    result = from_scores(scores, "test,train")
    same_and_right(result, explained(draws[0]).T, trained)


def sentences():
    """Sentences of two classes and the token that names the class, (x, y) of train and of test; the first is wrong."""
    y_train, y_test = torch.arange(8) % 2, torch.arange(5) % 2
    x_train, x_test = (torch.stack([2 + y, 4 + torch.arange(len(y)) // 2 % 2, 2 + y], 1) for y in (y_train, y_test))
    y_train[0] = 1
    return (x_train, y_train), (x_test, y_test)


def causal(transformers, seed, inputs, labels):
    """A small language model, trained a little to end each sentence with the token of its class."""
    shape = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **layers))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).logits[:, -1], labels).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(("settings", "sign"), [(True, -1), (False, 1)], ids=["by its command", "without settings"])
def test_scores_of_bergson_are_its_own_and_those_of_autograd(settings, sign, tmp_path):
    """Of the linear maps below the last layer. It negates scores only where the settings of their command lie there."""
    bergson = pytest.importorskip("bergson")
    commands = pytest.importorskip("bergson.cli.commands")
    load_scores_loss_signed = pytest.importorskip("bergson.data").load_scores_loss_signed
    score_dataset = pytest.importorskip("bergson.score.score").score_dataset
    datasets, tokenizers, transformers = map(pytest.importorskip, ("datasets", "tokenizers", "transformers"))
    train, test = sentences()
    for split, (x, y) in (("train", train), ("test", test)):
        columns = {"input_ids": torch.cat([x, y[:, None]], 1), "labels": F.pad(y[:, None], (x.shape[1], 0), value=-100)}
        datasets.Dataset.from_dict({name: c.tolist() for name, c in columns.items()}).save_to_disk(tmp_path / split)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(k): k for k in range(8)}, unk_token="0"))

    def scored(model, folder):
        """The folder of the scores of this model."""
        model.save_pretrained(folder / "model")
        transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "model")
        query, scores = (
            bergson.IndexConfig(str(folder / name), model=str(folder / "model"), data=bergson.DataConfig(str(data)))
            for name, data in (("query", tmp_path / "test"), ("scores", tmp_path / "train"))
        )
        plain, asked = bergson.PreprocessConfig(), bergson.ScoreConfig(query_path=query.run_path)
        commands.Build(query, plain).execute()
        if settings:
            commands.Score(asked, scores, plain).execute()
        else:
            score_dataset(scores, asked, plain)
        return scores.run_path

    def gd(model):
        def loss(x, y):
            return F.cross_entropy(model(x[None]).logits[0, -1], y)

        weights = [part.weight for part in model.model.modules() if isinstance(part, torch.nn.Linear)]
        return gradients(loss, weights, *train) @ gradients(loss, weights, *test).T

    models = {seed: causal(transformers, seed, *train) for seed in (0, 1)}
    paths = {seed: scored(model, tmp_path / f"seed{seed}") for seed, model in models.items()}
    result = from_scores({seed: load_scores_loss_signed(path)[0] for seed, path in paths.items()}, "train,test", sign)
    own = sign * load_scores_loss_signed(paths[0])[0]
    equal_and_signed(result.tau.values[..., 0], own, np.stack([gd(model) for model in models.values()]), test[1])


def in_a_file(folder, *modules):
    """The path of a safetensors file with these modules."""
    path = folder / "scores.safetensors"
    save_file({f"module {k}": module for k, module in enumerate(modules)}, path)
    return path


def no_safetensors(folder):
    path = folder / "scores.safetensors"
    path.write_text("0.1, 0.2")
    return path


REFUSED = {
    "all the same": (
        {0: MATRIX, 1: MATRIX},
        {},
        "some matrices are the same; each must come from a training of its own",
    ),
    "one seed": ({0: MATRIX}, {}, "scores must be a dict seed → matrix with at least 2 seeds"),
    "no seed": ({}, {}, "scores must be a dict seed → matrix with at least 2 seeds"),
    "no dict": ([MATRIX, MATRIX], {}, "scores: a list is not possible; give a dict seed → matrix"),
    "names for seeds": ({"a": MATRIX, "b": MATRIX}, {}, "the keys ['a', 'b'] are not all integers, the seeds"),
    "floats for seeds": ({0: MATRIX, 1.5: MATRIX}, {}, "the keys [0, 1.5] are not all integers, the seeds"),
    "truths for seeds": ({True: MATRIX, False: MATRIX}, {}, "the keys [True, False] are not all integers"),
    "layout": (MATRIX, {"layout": "train×test"}, "layout: 'train×test' is not possible; it must be 'train,test' or"),
    "layout, none": (MATRIX, {"layout": None}, "layout: None is not possible; it must be 'train,test' or"),
    "sign": (MATRIX, {"sign": 0}, "sign: 0 is not possible; it must be 1 or -1"),
    "sign, a word": (MATRIX, {"sign": "-"}, "sign: '-' is not possible; it must be 1 or -1"),
    "shapes": (
        {0: MATRIX, 1: MATRIX.T},
        {},
        "the matrices differ in shape, [(2, 3), (3, 2)]; they must be of the same",
    ),
    "1-D": (MATRIX[0], {}, "scores: seed 0: a matrix of real numbers is needed, not shape (3,) and type float64"),
    "3-D": (MATRIX[None], {}, "a matrix of real numbers is needed, not shape (1, 2, 3) and type float64"),
    "empty": (MATRIX[:0], {}, "a matrix of real numbers is needed, not shape (0, 3) and type float64"),
    "complex": (MATRIX + 1j, {}, "a matrix of real numbers is needed, not shape (2, 3) and type complex128"),
    "complex tensor": (torch.tensor(MATRIX + 1j), {}, "a matrix of real numbers is needed, not shape (2, 3) and type"),
    "strings": (MATRIX.astype(str), {}, "a matrix of real numbers is needed, not shape (2, 3) and type <U"),
    "truths": (MATRIX > 2, {}, "a matrix of real numbers is needed, not shape (2, 3) and type bool"),
    "tensor of truths": (torch.tensor(MATRIX > 2), {}, "a matrix of real numbers is needed, not shape (2, 3) and type"),
    "nothing": (None, {}, "a matrix of real numbers is needed, not shape () and type object"),
    "ragged": ([[1.0, 2.0], [3.0]], {}, "scores: seed 0: a matrix of real numbers is needed"),
    "NaN": (np.where(MATRIX > 3, np.nan, MATRIX), {}, "scores: seed 0: 2 of 6 scores are not finite"),
    "infinite": (torch.full((2, 3), torch.inf), {}, "scores: seed 0: 6 of 6 scores are not finite"),
    "beyond float32": (MATRIX * 1e300, {}, "scores: seed 0: 5 of 6 scores are not finite"),
    "missing file": (lambda folder: folder / "no", {}, "scores: seed 0: there is no file"),
    "folder": (lambda folder: str(folder), {}, "scores: seed 0: there is no file"),
    "address": ("https://scores.org/a", {}, "'https://scores.org/a' is no path"),
    "text file": (no_safetensors, {}, "scores.safetensors is no safetensors file of scores"),
    "empty file": (lambda folder: in_a_file(folder), {}, "is no safetensors file of scores"),
    "modules of other points": (
        lambda folder: in_a_file(folder, torch.ones(2, 3), torch.ones(3, 2)),
        {},
        "scores.safetensors is no safetensors file of scores",
    ),
    "modules of fewer points": (
        lambda folder: in_a_file(folder, torch.ones(2, 3), torch.ones(1, 3)),
        {},
        "scores.safetensors is no safetensors file of scores",
    ),
    "label": (MATRIX, {"labels": {"class": [0, 1]}}, "labels: 'class' is not possible; a name begins with train_ or"),
    "label, a split": (MATRIX, {"labels": {"train": [0, 1]}}, "labels: 'train' is not possible; a name begins with"),
    "label, a number": (MATRIX, {"labels": {3: [0, 1]}}, "labels: 3 is not possible; a name begins with train_ or"),
    "label, long": (MATRIX, {"labels": {"train_class": [0, 1, 2]}}, "train_class has shape (3,); there are 2 train"),
    "label, short": (MATRIX, {"labels": {"test_class": [0, 1]}}, "test_class has shape (2,); there are 3 test points"),
    "label, a matrix": (MATRIX, {"labels": {"train_class": MATRIX}}, "train_class has shape (2, 3); there are 2 train"),
    "label, one": (MATRIX, {"labels": {"train_class": "cat"}}, "train_class has shape (); there are 2 train points"),
    "labels, no dict": (MATRIX, {"labels": ["cat", "dog"]}, "labels must be a dict of what is known of the points"),
}


@pytest.mark.parametrize(("given", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_impossible_scores_are_refused_in_one_sentence(given, options, said, tmp_path):
    given = given(tmp_path) if callable(given) else given
    as_it_is = isinstance(given, dict) or said.startswith(("scores must be", "scores: a list"))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        from_scores(given if as_it_is else {0: given, 1: given}, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_seed_that_is_wrong_is_named():
    with pytest.raises(ValueError, match="scores: seed 8: 1 of 6 scores are not finite"):
        from_scores({7: MATRIX, 8: np.where(MATRIX == 1, np.inf, MATRIX)})


@pytest.fixture(scope="module")
def finished():
    """Scores of two methods by 5 seeds, (train 8, test 6), and the same τ by another way."""
    stream = np.random.default_rng(2)
    mean = stream.normal(0, 3, (8, 6))
    labels = {"train_class": list("aabbccdd"), "test_class": list("abcdab")}
    scores = seeds(5, mean), seeds(5, mean + stream.normal(size=(8, 6)), seed=1)
    one, other = (from_scores(given, unit="nats", labels=labels, method=f"m{k}") for k, given in enumerate(scores))
    draws = np.stack([np.stack(list(given.values())) for given in scores], -1)
    return xr.concat([one, other], "method").tau, simulate(draws[:, None])


STATISTICS = {
    "by_member": stats.by_member,
    "scaled": stats.scaled,
    "per_pair": stats.per_pair,
    "per_pair, scaled": lambda tau: stats.per_pair(tau, scale="test", level=0.9),
    "moderated_snr": stats.moderated_snr,
    "summary": stats.summary,
    "trustworthy": lambda tau: stats.trustworthy(tau, 0.2),
    "extremes": lambda tau: stats.extremes(stats.per_pair(tau), "m0"),
    "noise_by_size": stats.noise_by_size,
    "power": lambda tau: stats.power(tau.isel(method=[1])),
    "agreement": lambda tau: stats.agreement(tau, resamples=20),
    "noise_ceiling": lambda tau: stats.noise_ceiling(tau, "m0"),
    "distances": lambda tau: stats.distances(tau, "m0"),
    "proponents": lambda tau: stats.proponents(stats.by_member(tau)),
    "top_k_stability": stats.top_k_stability,
    "top_k_survival": stats.top_k_survival,
}


@pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)
def test_every_statistic_says_of_finished_scores_what_it_says_of_the_same_tau(finished, statistic):
    tau, same = finished
    found, expected = statistic(tau), statistic(same)
    if isinstance(found, pd.DataFrame):
        assert len(found) > 0
        pd.testing.assert_frame_equal(found[expected.columns], expected)
    else:
        kept = [name for name in found.coords if name in expected.coords]
        xr.testing.assert_allclose(found.reset_coords(drop=True), expected.reset_coords(drop=True))
        assert found.sizes == expected.sizes and "method" in kept


def test_labels_of_finished_scores_stand_beside_the_pairs(finished):
    pairs = stats.trustworthy(finished[0], 0.2)
    assert pairs.train_class.tolist() == [list("aabbccdd")[j] for j in pairs.train]
    assert pairs.test_class.tolist() == [list("abcdab")[z] for z in pairs.test]


def test_all_variance_of_finished_scores_is_that_of_members(finished):
    components = stats.variance_components(finished[0])
    assert components.source.values.tolist() == ["member"] and (components.share == 1).all()
    np.testing.assert_allclose(components.variance[0], finished[0].var("sample", ddof=1).mean(("train", "test")), 1e-4)


def one_pair(tau):
    return tau.isel(train=0, test=0, method=0)


FIGURES = {
    "plot_reliability": (lambda tau, ax: plots.plot_reliability(stats.per_pair(tau), "m1", ax=ax), "|mean τ| (nats)"),
    "plot_noise_share": (lambda tau, ax: plots.plot_noise_share(stats.summary(tau), ax=ax), "method"),
    "plot_noise_by_size": (
        lambda tau, ax: plots.plot_noise_by_size(stats.noise_by_size(tau), ax=ax),
        "largest pairs, chosen in one training (share of all)",
    ),
    "plot_snr": (lambda tau, ax: plots.plot_snr(stats.per_pair(tau), ax=ax), "signal-to-noise ratio |mean τ| / std τ"),
    "plot_p_values": (
        lambda tau, ax: plots.plot_p_values(stats.per_pair(tau), "p_t", ax=ax),
        "p_t: is E[τ] = 0? (Student t)",
    ),
    "plot_trust_map": (
        lambda tau, ax: plots.plot_trust_map(stats.per_pair(tau), "m0", ax=ax),
        "test points, by class",
    ),
    "plot_correlations": (
        lambda tau, ax: plots.plot_correlations(
            stats.agreement(tau, resamples=2).correlation.sel(statistic="mean", kind="pearson"), ax=ax
        ),
        "",
    ),
    "plot_ceiling": (lambda tau, ax: plots.plot_ceiling(stats.noise_ceiling(tau, "m0"), ax=ax), "method"),
    "plot_power": (lambda tau, ax: plots.plot_power(stats.power(tau.isel(method=[1])), ax=ax), "members"),
    "plot_variance_shares": (
        lambda tau, ax: plots.plot_variance_shares(stats.variance_components(tau), ax=ax),
        "share of Var(τ) of one draw",
    ),
    "plot_draws": (
        lambda tau, ax: plots.plot_draws(one_pair(tau), stats.by_member(one_pair(tau)), ax=ax),
        "τ m0 (nats)",
    ),
}


@pytest.mark.parametrize(("figure", "label"), FIGURES.values(), ids=FIGURES)
def test_every_figure_shows_finished_scores(finished, figure, label):
    one = from_scores({k: m for k, m in enumerate(finished[0].values[..., 1])}, unit="nats", method="m1").tau
    tau = one if label == "|mean τ| (nats)" else finished[0]  # concat keeps the units of the first alone
    ax = figure(tau, plt.figure().gca())
    ax.figure.canvas.draw()
    assert ax.get_xlabel() == label and (ax.has_data() or ax.images)
    plt.close("all")


def test_of_clear_signal_nearly_all_signs_are_trusted():
    """Of 20 seeds what is within 0.5 of 0 stays open, an eighth of N(0, 3); the signs that are listed hold."""
    mean = np.random.default_rng(3).normal(0, 3, (20, 15))
    found = verdict(from_scores(seeds(20, mean), method="clear"))
    row, (signs, top, needed) = found.table.loc["clear"], found.sentences["clear"]
    trusted = int(row["trusted"].partition("%")[0])
    assert 82 <= trusted <= 93 and float(row["sign error"].rstrip("%")) <= 1
    assert signs == (
        f"With 20 trainings the sign of {row['trusted']} of 300 pairs (20 train × 15 test) can be trusted: other "
        f"trainings would give the same (about {row['sign error']} of them would not); for the others do not act on "
        "single pairs. Whether clear is right is another question."
    )
    assert top == f"Of a test point's top 5 train points {row['top 5 overlap']} stay with another seed (25% by chance)."
    assert int(row["top 5 overlap"].partition("%")[0]) > 60 and row["by chance"] == "25%"
    assert needed == f"Seeds needed until the sign of half of the pairs can be trusted: {row['seeds needed']}."
    assert int(row["seeds needed"].partition(" ")[0]) <= 6  # which see half of them, beyond 1


def test_of_pure_noise_no_pair_is_trusted():
    found = verdict(from_scores(seeds(5, np.zeros((20, 15))), method="noise"))
    row, (signs, top, needed) = found.table.loc["noise"], found.sentences["noise"]
    assert signs.startswith("0 of 300 pairs (20 train × 15 test) can be trusted with 5 trainings: do not act on single")
    assert row["trusted"].startswith("0% [0%, ") and row["sign error"] == "–"
    assert int(row["noise"].partition("%")[0]) > 80
    assert 15 <= int(row["top 5 overlap"].partition("%")[0]) <= 35 and "(25% by chance)" in top
    assert row["seeds needed"] == "more than 20 [more than 20 to more than 20]" and row["seeds needed"] in needed


def test_a_verdict_has_three_sentences_for_each_method_and_str_holds_them():
    mean = np.random.default_rng(4).normal(0, 3, (10, 9))
    clear, noise = (from_scores(seeds(3, m), method=name) for m, name in ((mean, "clear"), (0 * mean, "noise")))
    both = xr.concat([clear, noise], "method")
    found = verdict(both)
    assert list(found.sentences) == list(found.table.index) == ["clear", "noise"]
    for method, sentences in found.sentences.items():
        assert len(sentences) == 3 and all(sentence.endswith(".") for sentence in sentences)
        assert f"{method}: {' '.join(sentences)}" in str(found)
        assert f"- **{method}**: {' '.join(sentences)}" in found._repr_markdown_()
    assert all(name in str(found) for name in found.table.columns) and "<table" in found._repr_markdown_()
    assert str(verdict(both.tau)) == str(found)
    alone = verdict(both.tau.isel(method=1))
    assert alone.sentences == {"noise": found.sentences["noise"]}


@pytest.mark.parametrize("count", [2, 3])
def test_a_verdict_of_few_seeds_forecasts_nothing(count):
    mean = np.random.default_rng(5).normal(0, 3, (20, 15))
    found = verdict(from_scores(seeds(count, mean)))
    row, sentences = found.table.loc["scores"], found.sentences["scores"]
    assert row["members"] == count and row["seeds needed"] == "not known from fewer than 4"
    assert len(sentences) == 3 and sentences[2].endswith("can be trusted: not known from fewer than 4.")
    if count == 2:  # halves of one member each tell no sign error
        assert sentences[0].startswith(
            "0 of 300 pairs (20 train × 15 test) can be trusted with 2 trainings: do not act"
        )
    else:
        assert sentences[0].startswith("With 3 trainings the sign of ")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_verdict_says_no_nan(count):
    assert "nan" not in str(verdict(from_scores(seeds(count, np.zeros((6, 4))))))


def test_fewer_than_five_train_points_have_shorter_lists():
    found = verdict(from_scores(seeds(4, np.zeros((3, 7)))))
    assert found.table.loc["scores", "top 3 overlap"].startswith("100%")
    assert "Of a test point's top 3 train points 100%" in found.sentences["scores"][1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (from_scores({0: MATRIX, 1: 2 * MATRIX}).isel(sample=[0]), "at least 2 members are needed, not 1"),
        (from_scores({0: MATRIX, 1: 2 * MATRIX}).drop_vars("tau"), "τ"),
        (from_scores({0: MATRIX, 1: 2 * MATRIX}).tau.drop_vars("member"), "τ must be a DataArray"),
        (MATRIX, "τ must be a DataArray"),
        ({0: MATRIX, 1: MATRIX}, "τ must be a DataArray"),
    ],
    ids=["one member", "no τ in it", "no members", "an array", "scores as they are"],
)
def test_a_verdict_on_what_is_no_result_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        verdict(given)


def test_a_verdict_says_why_a_list_of_pairs_that_pass_is_empty():
    """A tenth of the pairs have an effect, and halves of five members contradict each other on too many of them."""
    stream = np.random.default_rng(1)
    effect = np.where(
        stream.random((60, 40)) < 0.1, stream.choice([-1, 1], (60, 40)) * stream.uniform(2, 6, (60, 40)), 0
    )
    judged = verdict(from_scores({seed: effect + stream.normal(size=effect.shape) for seed in range(5)}))
    said = judged.sentences["scores"][0]
    assert (
        said.startswith("0 of 2,400 pairs")
        and "% pass a test, but halves of the trainings contradict each other" in said
    )
    noise = verdict(from_scores({seed: stream.normal(size=(20, 30)) for seed in range(5)}))
    assert "pass a test" not in noise.sentences["scores"][0]
    two = verdict(from_scores({seed: effect + 3 + 1e-4 * stream.normal(size=effect.shape) for seed in range(2)}))
    assert two.sentences["scores"][0].startswith("0 of") and "halves" not in two.sentences["scores"][0]
