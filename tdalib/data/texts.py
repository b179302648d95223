"""Texts: passages as token ids and a mask."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from tdalib import objectives
from tdalib.data.places import PACKAGE, fetched, had
from tdalib.data.sources import register
from tdalib.data.task import SPLITS, Task, from_arrays
from tdalib.options import Count, Natural, check

SOTU = PACKAGE / "datasets" / "sotu3.csv"
TOKENIZER = PACKAGE / "backbones" / "bert_sotu"
LENGTH = 64  # tokens of a passage, at most


def from_texts(
    texts: Sequence[str],
    labels: Sequence | None,
    test_texts: Sequence[str],
    test_labels: Sequence | None,
    *,
    classes: Sequence[str] | None = None,
    tokenizer: str | None = None,
    length: int = LENGTH,
    train_index: np.typing.ArrayLike | None = None,
    test_index: np.typing.ArrayLike | None = None,
    facts: dict[str, tuple] | None = None,
    objective: str | objectives.Objective | Callable | None = None,
    name: str = "texts",
) -> Task:
    """A task from your own texts: inputs are `input_ids` and `attention_mask`, (n, length), integers.

    Parameters
    ----------
    texts, test_texts : sequence of str
        The train and the test passages; each becomes the label "text" of its point.
    labels, test_labels : sequence of str, of int or of float, or None
        Names of classes, classes from 0, or values to be met; None where the objective is about the texts themselves,
        as "next_token" is.
    classes : sequence of str, optional
        Names, in the order that the network's outputs have; by default those of the train texts, sorted.
    tokenizer : str, optional
        A folder with a tokenizer as transformers' `save_pretrained` writes it, or a name on the Hugging Face hub: that
        of the `backbone`, where a model has one. By default the shipped one: 4,000 lower-case tokens (BPE) of the State
        of the Union addresses that `sotu3` does not hold.
    length : int
        Tokens of a passage; longer ones are cut, shorter ones padded.
    train_index, test_index : int array, optional
        Positions in the source; by default 0, 1, 2, …
    facts : dict, optional
        Name → (array of the train texts, array of the test texts): what else is known of each.
    objective : str, Objective or (outputs, targets) → (points,), optional
        By default cross_entropy for classes and squared_error for floats.

    Raises
    ------
    ValueError
        Texts that are none, labels that do not fit, a tokenizer that cannot be had.
    """
    check("from_texts", {"length": Count}, {"length": length})
    for passages in (texts, test_texts):
        if isinstance(passages, str) or not isinstance(passages, Iterable):
            raise ValueError(f"texts: a {type(passages).__name__} is not possible; give a list of strings")
    given = {"train": list(texts), "test": list(test_texts)}
    for split, passages in given.items():
        for k, passage in enumerate(passages):
            if not isinstance(passage, str) or not passage.strip():
                raise ValueError(f"text {k} of {split} is {passage!r}; every text must be a string that is not empty")
    if (labels is None) != (test_labels is None):
        raise ValueError("labels and test_labels: one is None; give both, or none for an objective such as next_token")
    if labels is None and (objective is None or objectives.get(objective).targets_of is None):
        raise ValueError("labels: None is for an objective about the texts themselves, such as next_token")
    y, y_test = np.zeros(len(given["train"])), np.zeros(len(given["test"]))
    if labels is not None:
        y, y_test, classes = _classes(labels, test_labels, classes)
    facts = {"text": (given["train"], given["test"])} | (facts or {})
    index = {"train_index": train_index, "test_index": test_index}
    train, test = _encoded(given.values(), tokenizer, length)
    return from_arrays(train, y, test, y_test, classes=classes, labels=facts, objective=objective, name=name, **index)


@register("sotu3")
def from_sotu(
    name: str,
    *,
    train_per_class: Count,
    test_per_class: Count,
    seed: Natural = 0,
    tokenizer: str | None = None,
    length: Count = LENGTH,
) -> Task:
    """Passages from State of the Union addresses of Roosevelt (1901-08), Truman (1946-53) and Clinton (1993-2000).

    Train and test passages come from different years. The first passages of each class are taken, in the order of the
    shipped table, whatever the seed; labels are the passage, "text", and its "year".

    Parameters
    ----------
    train_per_class, test_per_class : int
        Up to 100 and 300.
    seed : int
        Without effect.
    tokenizer, length
        See `from_texts`.

    Raises
    ------
    ValueError
        More per class than there are, or a tokenizer that cannot be had.
    """
    table = pd.read_csv(SOTU)
    classes = list(dict.fromkeys(table.sort_values("year")["label"]))
    parts = []
    for split, count in zip(SPLITS, (train_per_class, test_per_class), strict=True):
        rows = table[table["split"] == split]
        available = int(rows["label"].value_counts().min())
        if count > available:
            raise ValueError(f"{split}_per_class: {count} is not possible; sotu3 has 1 to {available} per class")
        parts.append(pd.concat([rows[rows["label"] == label].head(count) for label in classes]))
    train, test = parts
    passages = train["text"], train["label"], test["text"], test["label"]
    at = {"train_index": train.index, "test_index": test.index}
    years = {"year": (train["year"], test["year"])}
    return from_texts(*passages, classes=classes, tokenizer=tokenizer, length=length, facts=years, name=name, **at)


def _classes(labels: Sequence, test_labels: Sequence | None, classes: Sequence[str] | None) -> tuple:
    """Labels of both splits as numbers where they are names, and the names."""
    y, y_test = np.asarray(labels), np.asarray(test_labels)
    if y.dtype.kind not in "OUS":
        return y, y_test, classes
    labels, test_labels = [str(x) for x in y], [str(x) for x in y_test]
    classes = sorted(set(labels)) if classes is None else list(classes)
    if unknown := sorted({*labels, *test_labels} - {*classes}):
        raise ValueError(f"label {unknown[0]!r} is none of the classes {', '.join(classes)}")
    return np.array([classes.index(x) for x in labels]), np.array([classes.index(x) for x in test_labels]), classes


def _encoded(splits: Iterable[list[str]], tokenizer: str | None, length: int) -> list[dict[str, np.ndarray]]:
    """The token ids and the mask of the passages of each split, (n, length) arrays."""
    from transformers import AutoTokenizer

    with had(f"tokenizer {tokenizer!r}", "one"):
        folder = TOKENIZER if tokenizer is None else fetched(tokenizer)
        known = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    known.pad_token = known.pad_token or known.eos_token  # what is padded is masked, so any will do
    encoded = [known(passages, padding="max_length", truncation=True, max_length=length) for passages in splits]
    return [{key: np.asarray(each[key]) for key in ("input_ids", "attention_mask")} for each in encoded]
