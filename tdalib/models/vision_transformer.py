"""ViT + LoRA: a pre-trained vision transformer, of which low-rank adapters and the classifier are trained."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from tdalib.data import Task, resolve
from tdalib.models.network_functions import register

SHIPPED = Path(__file__).parents[1] / "backbones" / "vit_cifar"
ADAPTED = ("q_proj", "v_proj")  # query and value of every block


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
    vit, processor = _pretrained(backbone, task.outputs)
    shape = tuple(getattr(task.x_train, "shape", ()))
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"vit_lora needs images (n, 1 or 3 channels, height, width); the task has {shape}")
    return LoraViT(vit, processor)


class LoraViT(nn.Module):
    """A `ViTForImageClassification` with adapters: images (n, channels, height, width) to logits (n, classes)."""

    def __init__(self, vit: nn.Module, processor):
        from peft import LoraConfig, get_peft_model

        super().__init__()
        config = LoraConfig(
            r=16, lora_alpha=16, lora_dropout=0.1, bias="none", target_modules=ADAPTED, modules_to_save=["classifier"]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that it is giving up
            self.peft = get_peft_model(vit, config)
        self.size, self.interpolation = [processor.size["height"], processor.size["width"]], processor.resample
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import resize

        x = x.expand(-1, 3, -1, -1)
        if list(x.shape[2:]) != self.size:
            x = resize(x, self.size, self.interpolation, antialias=True)
        return self.peft(pixel_values=(x / 2 + 0.5 - self.mean) / self.std).logits


def _pretrained(backbone: str | None, outputs: int):
    """The backbone with a new classifier, and its processor."""
    from transformers import AutoModelForImageClassification, ViTImageProcessor
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # LoRA's alone
    # eager attention is what vmap can batch
    options = no_dropout | {"use_safetensors": True, "trust_remote_code": False, "attn_implementation": "eager"}
    try:
        folder = _folder(backbone)
        logging.set_verbosity_error()  # else it says that the classifier is new
        logging.disable_progress_bar()
        processor = ViTImageProcessor.from_pretrained(folder)
        with torch.random.fork_rng(devices=[]):
            vit, loaded = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # the hub, transformers and safetensors raise what they come across
        reason = " ".join(str(error).split()) or repr(error)
        reason = reason.split(". ")[0].removesuffix(".")  # what follows is advice on their use
        raise ValueError(f"backbone {backbone!r} is no folder or name on the hub of a ViT: {reason}") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    kind = vit.config.model_type
    missing = [key for key in loaded["missing_keys"] if not key.startswith("classifier.")]
    if kind != "vit" or missing:
        lacking = ", ".join(missing[:3]) or "nothing"
        raise ValueError(f"backbone {backbone!r} is no whole ViT: it is of type {kind}, lacks {lacking}")
    if not (processor.size.height and processor.size.width):
        raise ValueError(f"backbone {backbone!r}: its processor must resize to a height and a width")
    vit.classifier = nn.Linear(vit.config.hidden_size, outputs)
    nn.init.trunc_normal_(vit.classifier.weight, std=vit.config.initializer_range)
    nn.init.zeros_(vit.classifier.bias)
    return vit, processor


def _folder(backbone: str | None):
    """Where a backbone lies; one on the hub is fetched where its cache does not hold it."""
    from huggingface_hub import snapshot_download

    folder = SHIPPED if backbone is None else resolve(backbone)
    if folder.is_dir():
        return folder
    wanted = {"repo_id": backbone, "allow_patterns": ["*.json", "*.safetensors"]}
    try:
        return snapshot_download(**wanted, local_files_only=True)
    except OSError:  # not in the cache
        return snapshot_download(**wanted)
