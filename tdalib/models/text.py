"""Networks of token ids: a bag of words, a pre-trained encoder with LoRA, and a small language model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdalib.data import Task
from tdalib.models.network_functions import register
from tdalib.models.pretrained import adapted
from tdalib.objectives import token_ids
from tdalib.options import Count

VOCABULARY = 4000  # of the shipped tokenizer
SHIPPED = Path(__file__).parents[1] / "backbones" / "bert_sotu"


@register("bow")
def bow(task: Task, seed: int, *, width: Count = 128, vocabulary: Count = VOCABULARY) -> nn.Module:
    """Bag of words: the embeddings of a passage's tokens, summed and divided by √count, and one hidden layer with GELU.

    Embeddings start at a hundredth of the usual size: what a token says is learned, not told apart from noise.

    Parameters
    ----------
    width : int
        Of embeddings and hidden layer.
    vocabulary : int
        Token ids are below it.
    """
    _check_tokens("bow", task, vocabulary)
    return BagOfWords(vocabulary, width, task.outputs)


class BagOfWords(nn.Module):
    """Token ids and mask (n, T) to outputs (n, C)."""

    def __init__(self, vocabulary: int, width: int, outputs: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.01)
        self.dense = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map token ids and mask, (n, T), to outputs (n, C)."""
        words = self.embedding(input_ids)  # (n, T, width)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask[:, :, None].to(words.dtype)
        return self.dense((words * mask).sum(1) / mask.sum(1).clamp(min=1).sqrt())


@register("text_lora")
def text_lora(task: Task, seed: int, *, backbone: str | None = None) -> nn.Module:
    """Text + LoRA: a pre-trained encoder with adapters on query and value, and a new classifier; as `vit_lora`.

    Parameters
    ----------
    backbone : str, optional
        A folder with a sequence classifier as transformers' `save_pretrained` writes it, or a name on the Hugging Face
        hub, such as google-bert/bert-base-uncased; the task's tokens must be those of its tokenizer (`tokenizer` of the
        data set). By default a small BERT that comes with tdalib, pre-trained without labels on the State of the Union
        addresses that `sotu3` does not hold.

    Raises
    ------
    ValueError
        A task that is not of token ids and mask, or a backbone that cannot be had.

    Source: Hu et al. 2021, arXiv:2106.09685; Devlin et al. 2019, arXiv:1810.04805.
    """
    network, _ = adapted("AutoModelForSequenceClassification", "a sequence classifier", backbone, SHIPPED, task.outputs)
    _check_tokens("text_lora", task, network.config.vocab_size)
    return network


@register("gpt2")
def gpt2(
    task: Task, seed: int, *, width: Count = 64, depth: Count = 2, heads: Count = 2, vocabulary: Count = VOCABULARY
) -> nn.Module:
    """A small GPT-2 from random weights, without dropout: logits of the next token, (n, T, vocabulary).

    Parameters
    ----------
    width, depth, heads : int
        Of the embeddings, in blocks, and of each block's attention; `heads` divides `width`.
    vocabulary : int
        Token ids are below it.

    Raises
    ------
    ValueError
        A task that is not of token ids, or a number of heads that does not divide the width.

    Source: Radford et al. 2019, Language models are unsupervised multitask learners.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    length = _check_tokens("gpt2", task, vocabulary)
    if width % heads:
        raise ValueError(f"gpt2.heads: {heads} is not possible; it must divide width, {width}")
    sizes: dict[str, Any] = dict(n_positions=length, n_embd=width, n_layer=depth, n_head=heads, vocab_size=vocabulary)
    no_dropout: dict[str, Any] = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, use_cache=False, bos_token_id=None, eos_token_id=None))


def _check_tokens(name: str, task: Task, vocabulary: int) -> int:
    """Refuse a task that is not of token ids below `vocabulary`; the length of its passages."""
    for points in (task.train, task.test):
        ids = token_ids(name, points.inputs)
        if ids.max() >= vocabulary or ids.min() < 0:
            raise ValueError(f"{name} knows tokens below {vocabulary}; the task has {ids.max()}")
    return ids.shape[1]
