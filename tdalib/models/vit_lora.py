"""ViT + LoRA: a pre-trained vision transformer, of which low-rank adapters and the classifier are trained."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from tdalib.data import Task, resolve
from tdalib.models.registry import register

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
        pre-trained without labels on CIFAR-10 images that its shipped subset does not hold.

    Raises
    ------
    ValueError
        A task that is not of images, or a backbone that cannot be had.

    Source: Hu et al. 2021, arXiv:2106.09685; Dosovitskiy et al. 2020, arXiv:2010.11929; settings of Nguyen et al. 2023,
    arXiv:2305.19765, appendix.
    """
    if task.x_train.ndim not in (3, 4):  # embedded or not
        raise ValueError(
            f"vit_lora needs images (n, channels, height, width); the task has {tuple(task.x_train.shape)}"
        )
    if task.x_train.ndim == 4 and task.x_train.shape[1] not in (1, 3):
        raise ValueError(f"vit_lora needs images of 1 or 3 channels; the task has {task.x_train.shape[1]}")
    vit, processor = _pretrained(backbone, len(task.classes))
    return LoraViT(vit, processor)


class LoraViT(nn.Module):
    """A `ViTForImageClassification` with adapters, from images, or from what `embed` made of them, to logits."""

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
        self.mean, self.std = processor.image_mean, processor.image_std

    def embed(self, images: Tensor) -> Tensor:
        """The frozen beginning: (n, channels, height, width) → class token and patches, (n, 1 + patches, width)."""
        images = images.expand(-1, 3, -1, -1)
        if list(images.shape[2:]) != self.size:
            images = resize(images, self.size, self.interpolation, antialias=True)
        mean, std = (images.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return self.peft.base_model.model.vit.embeddings((images / 2 + 0.5 - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        vit = self.peft.base_model.model.vit
        tokens = self.embed(x) if x.ndim == 4 else x
        for block in vit.layers:
            tokens = block(tokens)
        return self.peft.base_model.model.classifier(vit.layernorm(tokens[:, 0]))


def _pretrained(backbone: str | None, classes: int):
    """The backbone with a new classifier, and its processor."""
    from transformers import ViTForImageClassification, ViTImageProcessor
    from transformers.utils import logging

    folder = _folder(backbone)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # else it says that the classifier is new
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            processor = ViTImageProcessor.from_pretrained(folder)
            no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # LoRA's alone
            options = {"use_safetensors": True, "attn_implementation": "eager"}  # which vmap can batch
            vit = ViTForImageClassification.from_pretrained(folder, **options, **no_dropout)
    except Exception as error:  # transformers and safetensors raise what the content makes them raise
        raise ValueError(f"backbone {backbone!r} is no ViT with its processor: {error}") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    vit.classifier = nn.Linear(vit.config.hidden_size, classes)
    nn.init.trunc_normal_(vit.classifier.weight, std=vit.config.initializer_range)
    nn.init.zeros_(vit.classifier.bias)
    return vit, processor


def _folder(backbone: str | None) -> Path:
    """Where a backbone lies; one on the hub is fetched, once."""
    folder = SHIPPED if backbone is None else resolve(backbone)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(backbone, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # no such name, no network, a path that is none
        reason = str(error).splitlines()[0]
        raise ValueError(f"backbone {backbone!r} is no folder here and not to be had from the hub: {reason}") from None
