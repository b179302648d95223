"""Networks as functions of what they hold: parameters that are trained, and the rest that their output depends on."""

import inspect
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from hashlib import sha256
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tdalib.data.points import Inputs

Theta = dict[str, Tensor]  # name → trainable parameter

EVAL_BATCH = 100  # activations of 100 images stay in the processor's cache


class SlowerPath(UserWarning):
    """A network is served one at a time, where the faster way cannot: the numbers are the same."""


def say_slower(what: str, why: Exception | str) -> None:
    """Give notice of a slower path, in one line."""
    warnings.warn(f"{what}: {shorten(str(why) or repr(why), 120)}", SlowerPath, stacklevel=1)


class State(NamedTuple):
    """What a network's output depends on: θ, and the rest that may differ between draws (buffers) by name."""

    theta: Theta
    rest: dict[str, Tensor]


def trainable(network: nn.Module) -> Theta:
    """θ: the parameters that training changes, by name (the live tensors, not copies)."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def state_of(network: nn.Module) -> State:
    """A copy of what the network holds now."""
    theta = {name: p.detach().clone() for name, p in trainable(network).items()}
    return State(theta, {name: b.detach().clone() for name, b in network.named_buffers()})


def set_state(network: nn.Module, state: State) -> None:
    """Put a state into the network, in place."""
    held = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        for name, value in (state.theta | state.rest).items():
            held[name].copy_(value)


def copy_of(network: nn.Module) -> nn.Module:
    """A copy of the network that shares what is frozen."""
    return deepcopy(network, {id(p): p for p in network.parameters() if not p.requires_grad})


def forward(network: nn.Module, inputs: Inputs) -> Tensor:
    """Outputs of the network as it is."""
    arguments, by_name = _arguments(network, inputs)
    return _outputs(network(*arguments, **by_name))


def forward_at(network: nn.Module, held: dict[str, Tensor], inputs: Inputs) -> Tensor:
    """Outputs of the network with other parameters and buffers in place of its own."""
    return _outputs(functional_call(network, held, *_arguments(network, inputs)))


def calls(network: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, list[tuple[tuple, Any]]]:
    """What each of some layers takes and gives in one pass, (arguments, output) of every call; no gradient."""
    seen: dict[str, list[tuple[tuple, Any]]] = {name: [] for name in layers}
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():
            note = partial(lambda calls, _, arguments, output: calls.append((arguments, output)), seen[name])
            hooks.enter_context(layer.register_forward_hook(note))
        forward(network, inputs)
    return seen


def to_training(network: nn.Module) -> None:
    """Training mode (dropout is active), but for batch norm, which keeps its fixed statistics."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def direction(vectors: Tensor, leading: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 in a type, and their lengths, float64; `leading` dims count vectors, 0 has length 0.

    Lengths are kept apart as squares of small numbers underflow in float32, and the numbers themselves may.
    """
    lengths = vectors.flatten(leading).norm(dim=-1, dtype=torch.float64)
    divisor = torch.where(lengths > 0, lengths, 1).view(*lengths.shape, *[1] * (vectors.ndim - leading))
    return (vectors.double() / divisor).to(dtype), lengths


@contextmanager
def kept_generators() -> Iterator[None]:
    """The generators of numpy and random are afterwards as they were."""
    with ExitStack() as afterwards:
        afterwards.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        afterwards.callback(random.setstate, random.getstate())
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New floats have 32 bits; afterwards as many as before."""
    with ExitStack() as afterwards:
        afterwards.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Every generator at a seed; then torch's, of the CPU and of a GPU that is the device, as they were.

    Those of numpy and random, which a layer may take its numbers from, are put back by `kept_generators` around it all.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (code that others wrote)
        random.seed(seed)
        if gpus:
            torch.cuda.manual_seed(seed)
        yield


def fingerprint(held: dict[str, Tensor]) -> str:
    """SHA-256 over named tensors, to the bit."""
    digest = sha256()
    for name, value in held.items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def _outputs(given: Any) -> Tensor:
    """The outputs in what a network gave: a tensor, or the logits of an object that has them."""
    outputs = getattr(given, "logits", given)
    if not isinstance(outputs, Tensor):
        kind = type(given).__name__
        raise ValueError(f"the model gave a {kind}; it must give a tensor (points, ...), or an object with .logits")
    return outputs


def _arguments(network: nn.Module, inputs: Inputs) -> tuple[tuple, dict]:
    """What `forward` is called with: a dict by its keys where it has a parameter for every one, else one argument."""
    if isinstance(inputs, dict):
        with suppress(TypeError):
            inspect.signature(network.forward).bind_partial(**inputs)
            return (), inputs
    return (inputs,), {}
