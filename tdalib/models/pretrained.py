"""Pre-trained transformers of which low-rank adapters and a new classifier are trained (LoRA); the rest is frozen."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdalib.data import fetched, had
from tdalib.options import said_as

QUERY_AND_VALUE = {"query", "value", "q_proj", "v_proj", "q_lin", "v_lin"}  # as networks of transformers call them


def adapted(auto: str, what: str, backbone: str | None, shipped: Path, outputs: int) -> tuple[Any, Path]:
    """A backbone with adapters on query and value and a new classifier, in peft's wrapper; and its folder.

    Rank 16, α 16, dropout 0.1, no bias; the backbone's own dropout is off. In a network that calls query and value
    otherwise adapters sit where peft puts them.

    Parameters
    ----------
    auto : str
        The class of transformers that loads it.
    what : str
        What it is to be, in words.
    backbone : str, optional
        A folder, or a name on the Hugging Face hub; by default the `shipped` folder.

    Raises
    ------
    ValueError
        The backbone cannot be had, or is no whole one.
    """
    from peft import LoraConfig, get_peft_model

    with had(f"backbone {backbone!r}", what), torch.random.fork_rng(devices=[]):
        folder = shipped if backbone is None else fetched(backbone)
        network, missing = _loaded(auto, folder, outputs)
    heads = [name for name, part in network.named_children() if part is not network.base_model and _linear(part)]
    if lacking := [key for key in missing if key.split(".")[0] not in heads]:
        kind, keys = network.config.model_type, ", ".join(lacking[:3])
        raise ValueError(f"backbone {backbone!r} is no whole network: it is of type {kind}, lacks {keys}")
    for layer in (layer for name in heads for layer in _linear(network.get_submodule(name))):
        layer.reset_parameters()
        nn.init.trunc_normal_(layer.weight, std=network.config.initializer_range)
        nn.init.zeros_(layer.bias)
    names = QUERY_AND_VALUE & {name.rpartition(".")[2] for name, _ in network.named_modules()}
    targets = sorted(names) or None  # None: peft knows, or refuses
    config = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, target_modules=targets, modules_to_save=heads)
    outdated = warnings.catch_warnings(action="ignore", category=FutureWarning)  # peft asks by a name that is given up
    with outdated, said_as(f"backbone {backbone!r} takes no adapters"):
        return get_peft_model(network, config), folder


def _linear(part: nn.Module) -> list[nn.Linear]:
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear)]


def _loaded(auto: str, folder: Path, outputs: int) -> tuple[Any, set[str]]:
    """The network without dropout, and the names of the weights that its folder lacks."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.num_labels = outputs
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    options = {"config": config, "use_safetensors": True, "trust_remote_code": False}
    # eager attention is what vmap can batch
    options |= {"attn_implementation": "eager", "ignore_mismatched_sizes": True, "output_loading_info": True}
    network, loaded = getattr(transformers, auto).from_pretrained(folder, **options)
    return network, loaded["missing_keys"]
