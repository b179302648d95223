"""Pre-trained transformers of which low-rank adapters and a new classifier are trained (LoRA); the rest is frozen."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdalib.data import Task, fetched, had
from tdalib.models.network_functions import register
from tdalib.options import said_as

SHIPPED = Path(__file__).parents[1] / "backbones" / "vit_cifar"
QUERY_AND_VALUE = {"query", "value", "q_proj", "v_proj", "q_lin", "v_lin"}  # as networks of transformers call them


@register("vit_lora")
def vit_lora(task: Task, seed: int, *, backbone: str | None = None) -> nn.Module:
    """ViT + LoRA: rank 16, α 16, dropout 0.1 on query and value of every block, no bias; the classifier is trained too.

    The rest is frozen. LoRA's second matrix starts at 0, so that training starts from the backbone. Its dropout is
    active in training alone. Images, in [−1, 1] as `tdalib.data` scales them, are resized and normalised as the
    backbone's processor asks for; grey ones become three equal channels.

    Parameters
    ----------
    backbone : str, optional
        A folder with a ViT as transformers' `save_pretrained` writes it, its processor's too (a relative path starts
        at the repository root), or a name on the Hugging Face hub, fetched when not in its cache, such as the paper's
        google/vit-base-patch16-224-in21k. By default a small ViT for 32 × 32 images that comes with tdalib,
        pre-trained without labels on CIFAR-10 images that its shipped subset does not hold (of the full set it has
        seen most, so that there a train point left out may still be in the backbone).

    Raises
    ------
    ValueError
        A task that is not of images, or a backbone that cannot be had.

    Source: Hu et al. 2021, arXiv:2106.09685; Dosovitskiy et al. 2020, arXiv:2010.11929; settings of Nguyen et al. 2023,
    arXiv:2305.19765, appendix.
    """
    shape = tuple(getattr(task.x_train, "shape", ()))
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"vit_lora needs images (n, 1 or 3 channels, height, width); the task has {shape}")
    from transformers import ViTImageProcessor

    vit, folder = adapted("AutoModelForImageClassification", "a ViT", backbone, SHIPPED, task.outputs)
    if vit.config.model_type != "vit":
        raise ValueError(f"backbone {backbone!r} is no ViT: it is of type {vit.config.model_type}")
    with had(f"backbone {backbone!r}", "a ViT"):
        processor = ViTImageProcessor.from_pretrained(folder)
    if not (processor.size["height"] and processor.size["width"]):
        raise ValueError(f"backbone {backbone!r}: its processor must resize to a height and a width")
    return LoraViT(vit, processor)


class LoraViT(nn.Module):
    """A ViT with adapters: images (n, channels, height, width) to logits (n, classes)."""

    def __init__(self, vit: nn.Module, processor: Any):
        super().__init__()
        self.peft = vit
        self.size, self.interpolation = [processor.size["height"], processor.size["width"]], processor.resample
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, height, width) to logits (n, classes)."""
        from torchvision.transforms.v2.functional import resize

        x = x.expand(-1, 3, -1, -1)
        if list(x.shape[2:]) != self.size:
            x = resize(x, self.size, self.interpolation, antialias=True)
        return self.peft(pixel_values=(x / 2 + 0.5 - self.get_buffer("mean")) / self.get_buffer("std")).logits


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
