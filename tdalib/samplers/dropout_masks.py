"""MC dropout: dropout masks kept at a trained mode."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tdalib.data import Task
from tdalib.networks import calls
from tdalib.samplers.draw import Draws
from tdalib.samplers.posterior import NOISE, Member, Posterior, derive_seed, register

EPSILON = 1e-12


@register("mc_dropout")
def mc_dropout(posterior: Posterior) -> Posterior:
    """MC dropout: θ of a member's training, each draw with its own dropout masks, kept for all points.

    A draw is one thinned network: every `nn.Dropout` layer multiplies its input by one mask, drawn as in training and
    shared by all points, in losses and in gradients alike. Other forms of dropout (channels, attention) are not drawn,
    and a layer that is called twice has one mask, whatever its names. The network needs at least one `nn.Dropout` of p
    between 0 and 1 that is used.

    Under other weights the member is trained again, and the masks are the same.

    Raises
    ------
    ValueError
        The network uses no such layer, or one on inputs of different shapes.

    Source: Gal and Ghahramani 2016, arXiv:1506.02142.
    """
    masked = Masked(posterior.build)(posterior.task, posterior.members[0].init_seed)
    if not any(isinstance(layer, MaskedDropout) and 0 < layer.p < 1 for layer in masked.modules()):
        lack = f"{posterior.description()['model']} uses no nn.Dropout of p between 0 and 1 (mlp can)"
        raise ValueError(f"'mc_dropout' needs a model with dropout; {lack}")
    return replace(posterior, build=Masked(posterior.build), sample=run_masked, kind="independent")


def run_masked(posterior: Posterior, member: Member, weights: Tensor) -> Draws:
    """One member: a training and masks for its end, once for each row of `weights`."""
    seed = derive_seed(member.batch_seed, 0, NOISE)
    for mode in posterior.modes(member, weights):
        masks = {k: drawn_masks(mode.model, derive_seed(seed, k, NOISE)) for k in posterior.numbers}
        yield [replace(mode, rest=mode.rest | drawn, checkpoint=k) for k, drawn in masks.items()]


@dataclass(frozen=True)
class Masked:
    """A network function whose dropout layers have masks, which are buffers of a draw."""

    build: Callable[[Task, int], nn.Module]

    def __call__(self, task: Task, seed: int) -> nn.Module:
        """The network with a mask beside each dropout layer, in eval mode."""
        network = self.build(task, seed).eval()
        every = list(network.named_modules(remove_duplicate=False))  # a layer may have several names
        layers = {name: m for name, m in network.named_modules() if type(m) is nn.Dropout and m.p > 0}
        of_two = calls(network, layers, task.train[[0, 0]].inputs)
        for name, called in calls(network, layers, task.train[:1].inputs).items():
            shapes = {arguments[0].shape[1:] for arguments, _ in called}
            counts = [tuple(len(arguments[0]) for arguments, _ in each) for each in (called, of_two[name])]
            if counts != [(count,) * len(called) for count in (1, 2)]:
                raise ValueError(f"mc_dropout: layer {name!r} drops from something whose first dim is not the points")
            if len(shapes) > 1:
                remedy = "give each use its own nn.Dropout"
                raise ValueError(f"mc_dropout: layer {name!r} is used on several shapes; {remedy}")
            if called:
                (values, *_), _ = called[0]
                masked = MaskedDropout(layers[name].p, values[0])
                for alias in (alias for alias, module in every if module is layers[name]):
                    network.set_submodule(alias, masked)
        return network.train()


def drawn_masks(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """A mask for every dropout layer, by the name of its buffer."""
    stream = torch.Generator().manual_seed(seed)
    masks = {}
    for name, layer in network.named_modules():
        if isinstance(layer, MaskedDropout):
            kept = torch.empty(layer.mask.shape, dtype=layer.mask.dtype).bernoulli_(1 - layer.p, generator=stream)
            masks[f"{name}.mask"] = (kept / max(1 - layer.p, EPSILON)).to(layer.mask.device)  # of p = 1 all are 0
    return masks


class MaskedDropout(nn.Dropout):
    """Dropout in training; else a mask that drops the same entries of every point, at first none."""

    mask: Tensor

    def __init__(self, p: float, values: Tensor):
        super().__init__(p)
        self.register_buffer("mask", torch.ones_like(values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drop at random in training, by the mask in eval mode; the shape stays."""
        return super().forward(x) if self.training else x * self.mask
