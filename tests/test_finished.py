"""Finished checkpoints as a posterior."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tdalib import Recipe, attribute, deep_ensemble, from_checkpoints, models

RECIPE = Recipe(epochs=2)
ESTIMATES = ["ats", "if", "gd", "gc"]


@pytest.fixture(scope="module")
def trained(digits):
    return deep_ensemble("cnn2", digits, RECIPE, members=2, checkpoints=2)


@pytest.fixture(scope="module")
def states(trained):
    return [draw.module().state_dict() for k in range(2) for draw in trained.draws(k)]


def test_files_and_state_dicts_give_what_the_training_gave(digits, trained, states, tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.pt", tmp_path / "c.safetensors", tmp_path / "d.pth"]
    for state, file in zip(states, files, strict=True):
        state = {name: p.contiguous() for name, p in state.items()}
        save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    expected = attribute(trained, ESTIMATES, workers=1)
    largest = abs(expected.tau).max(["sample", "train", "test"])  # by method: gd's are sums of the size 10
    for checkpoints in (states, files):
        for members in (2, [0, 0, 1, 1]):
            posterior = from_checkpoints("cnn2", digits, checkpoints, members=members, recipe=RECIPE)
            result = attribute(posterior, ESTIMATES, workers=2)
            np.testing.assert_allclose(result.tau / largest, expected.tau / largest, rtol=1e-4, atol=1e-6)
            assert result.member.values.tolist() == [0, 0, 1, 1]
    alone = from_checkpoints("cnn2", digits, states)
    assert len(alone.members) == 4 and alone.checkpoints == 1


def test_a_network_of_ones_own_and_its_frozen_part_come_from_the_checkpoint(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.Tanh(), nn.Linear(5, 3))
    network[1].requires_grad_(False)
    states = []
    for scale in (1.0, 2.0):
        states.append({name: scale * p + 0.01 for name, p in network.state_dict().items()})
    result = attribute(from_checkpoints(network, digits, states), "gd", workers=1)
    for k, state in enumerate(states):
        network.load_state_dict(state)
        assert result.loss[k].values == pytest.approx(
            nn.functional.cross_entropy(network(digits.x_test), digits.y_test, reduction="none").tolist(), rel=1e-5
        )
    assert (result.tau[0] != result.tau[1]).any()


def test_frozen_parts_of_two_draws_are_kept_apart(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.Tanh(), nn.Linear(5, 3))
    network[1].requires_grad_(False)
    before = network[1].weight.clone()
    states = [{name: scale * p for name, p in network.state_dict().items()} for scale in (1.0, 2.0)]
    posterior = from_checkpoints(network, digits, states)
    (one,), (two,) = posterior.draws(0), posterior.draws(1)
    first, second = one.module(), two.module()
    torch.testing.assert_close(second[1].weight, 2 * first[1].weight)
    assert torch.equal(network[1].weight, before)


def test_other_checkpoints_are_another_result(digits, states, tmp_path):
    attribute(from_checkpoints("cnn2", digits, states[:2]), "gd", path=tmp_path / "a.zarr", workers=1)
    with pytest.raises(ValueError, match="was made with sampler_options"):
        attribute(from_checkpoints("cnn2", digits, states[2:]), "gd", path=tmp_path / "a.zarr", workers=1)


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ("loo", {}, "finished checkpoints cannot be trained again without a point; use a sampler that trains"),
        ("loo", {"protocol": "further"}, "loo: 'further' trains on from epochs; 'from_checkpoints' draws none; choose"),
        ("ats", {}, "ats: a step needs the training's recipe, which is not known; give it to from_checkpoints"),
        ("if", {}, "if: the recipe, whose weight_decay damps, is not known; give damping"),
    ],
)
def test_what_needs_a_training_is_refused(digits, states, tmp_path, methods, options, message):
    posterior = from_checkpoints("cnn2", digits, states)
    with pytest.raises(ValueError, match=message):
        attribute(posterior, methods, options={methods: options}, path=tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
    assert attribute(posterior, "if", options={"if": {"damping": 0.1}}, workers=1).sizes["sample"] == 4


def test_bad_checkpoints_are_refused(digits, states, tmp_path):
    def refused(message, checkpoints, **options):
        with pytest.raises(ValueError, match=message) as error:
            from_checkpoints("cnn2", digits, checkpoints, **options)
        assert "\n" not in str(error.value)

    (tmp_path / "noise.pt").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(models.cnn2(digits, 0), tmp_path / "whole.pt")  # a pickled network, which weights_only refuses
    refused("members: no of 0 checkpoints", [])
    refused("no file", [tmp_path / "none.pt"])
    for name in ("noise.pt", "noise.safetensors", "whole.pt", "list.pt"):
        refused(f"{name} is no safetensors file nor torch weights", [tmp_path / name])
    lacking = {name: p for name, p in states[0].items() if name != "0.weight"}
    refused('checkpoint 1 does not fit the model: .* Missing key.* "0.weight"', [states[0], lacking])
    refused('checkpoint 0 does not fit the model: .* Unexpected key.* "x"', [states[0] | {"x": torch.ones(1)}])
    refused("size mismatch for 0.bias", [states[0] | {"0.bias": torch.ones(1)}])
    refused("members: no of 4 checkpoints", states, members=0)
    refused("each member needs one at least", states[:2], members=4)
    refused("members: 1, 1, 1 of 4 checkpoints", states, members=3)
    refused("members: 1, 1 of 4 checkpoints", states, members=[0, 1])
    refused("each member needs one at least, all equally many", states, members=[0, 0, 0, 1])
