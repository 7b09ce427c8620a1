"""Data sets of fine-tuning: labels of the embedded corpus, and labelled examples from files.

Each has three parts. `train` is learned, `valid` selects the learning rate, and `test` is scored.
Where files give no valid part, a tenth of the training examples is taken for it; where they give no
test part, their valid part is the test, or another tenth is. These tenths are selected by the hash
of the text, so that equal texts are in one part.
"""

import hashlib
import json
from typing import NamedTuple

import numpy as np

from data import corpus
from errors import ConfigError, DataError
from eval.baselines.labelled_passages import load_passages
from eval.finetuning.labelled_files import LabelledExample, read_labelled_files
from training.settings import FinetuneConfig

PARTS = ("train", "valid", "test")
HELD_OUT_TENTHS = {0: "valid", 1: "test"}  # Parts of the tenths of the hashes.
VERSE_PARTS = ("train", "train", "train", "valid", "test")  # Parts of consecutive chapters.


class FinetuneDataset(NamedTuple):
    """The examples of a data set by part, with what is predicted."""

    name: str
    problem: str  # classes, regression or tokens
    classes: tuple[str, ...]  # Sorted; () for regression.
    parts: dict[str, list[LabelledExample]]

    def targets(self, part: str) -> list[np.ndarray]:
        """Returns the target of each example: a class, a number, or a class for each word.

        Raises:
            DataError: if a label is not that of a training example.
        """
        if self.problem == "regression":
            return [np.asarray(example.label, np.float32) for example in self.parts[part]]
        index = {name: i for i, name in enumerate(self.classes)}
        out = []
        for example in self.parts[part]:
            labels = example.label if isinstance(example.label, tuple) else (str(example.label),)
            for label in labels:
                if label not in index:
                    raise DataError(
                        f"{example.location} has the label {label!r}, which no training example "
                        f"has (they have {', '.join(self.classes[:8])}); correct it, or add "
                        "training examples with it"
                    )
            ids = np.array([index[label] for label in labels], np.int32)
            out.append(ids if isinstance(example.label, tuple) else ids[0])
        return out

    def digest(self, *parts: str) -> str:
        """Returns the sha256 of the examples of some parts."""
        content = [[e.texts, e.label] for part in parts for e in self.parts[part]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_datasets(cfg: FinetuneConfig, splits: tuple[str, ...]) -> list[FinetuneDataset]:
    """Returns the data sets that the settings name, all of which are read before one is learned.

    Args:
        cfg: the settings of the task.
        splits: the splits of the embedded corpus from which its passages come.

    Raises:
        ConfigError: if there is none, or if two have one name.
        DataError: if a file cannot be read, or if there is nothing to learn in it.
    """
    datasets = list[FinetuneDataset]()
    for label in cfg.labels:
        problem = "regression" if label == "year" else "classes"
        examples = _verse_pairs(splits) if label == "verses" else _passages(label, splits)
        datasets.append(make_dataset(label, problem, examples, cfg.max_examples))
    for path in filter(None, (name.strip() for name in cfg.path.split(","))):
        name, problem, parts = read_labelled_files(path, cfg)
        datasets.append(make_dataset(name, problem, fill_parts(parts), cfg.max_examples))
    names = [dataset.name for dataset in datasets]
    if not names:
        raise ConfigError("eval.finetune has neither labels nor a path; set one of them")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"eval.finetune has two data sets of the name {repeated[0]!r}, of which scores are "
            "named; rename one, or leave it out"
        )
    return datasets


def make_dataset(
    name: str, problem: str, parts: dict[str, list[LabelledExample]], max_examples: int
) -> FinetuneDataset:
    """Returns a data set whose training part has at most `max_examples` examples (0: all).

    Raises:
        DataError: if a part has no example, or there is nothing to tell apart.
    """
    for part in PARTS:
        if not parts.get(part):
            raise DataError(f"the data set {name} has no example in its {part} part; add examples")
    train = parts["train"]
    if 0 < max_examples < len(train):
        train = sorted(train, key=_hash)[:max_examples]
    labels = [e.label if isinstance(e.label, tuple) else (e.label,) for e in train]
    classes = tuple(sorted({str(label) for item in labels for label in item}))
    if len(classes) < 2:
        raise DataError(
            f"all training examples of {name} have the label {classes[0]!r}; there is nothing to "
            "learn, add examples with others"
        )
    classes = () if problem == "regression" else classes
    dataset = FinetuneDataset(name, problem, classes, {**parts, "train": train})
    for part in PARTS:
        dataset.targets(part)  # Raises if a label is not that of a training example.
    return dataset


def fill_parts(parts: dict[str, list[LabelledExample]]) -> dict[str, list[LabelledExample]]:
    """Returns examples with all three parts, of which some are cut from others."""
    filled = {part: [*parts.get(part, [])] for part in PARTS}
    if not filled["test"] and filled["valid"]:
        filled["test"], filled["valid"] = filled["valid"], []
    needed = {part for part in ("valid", "test") if not filled[part]}
    if needed:
        examples, filled["train"] = filled["train"], []
        for example in examples:
            part = HELD_OUT_TENTHS.get(_hash(example) % 10, "train")
            filled[part if part in needed else "train"].append(example)
    return filled


def _hash(example: LabelledExample) -> int:
    digest = hashlib.sha256("\0".join(example.texts).encode()).digest()
    return int.from_bytes(digest[:8])


def _passages(label: str, splits: tuple[str, ...]) -> dict[str, list[LabelledExample]]:
    """Returns the passages of the corpus that have a label of this kind."""
    parts: dict[str, list[LabelledExample]] = {part: [] for part in PARTS}
    for number, passage in enumerate(load_passages(splits)):
        if label in passage.labels:
            value = passage.labels[label]
            example = LabelledExample(
                (passage.text,),
                float(value) if label == "year" else value,
                f"{corpus.NAME}: passage {number}",
            )
            parts[passage.probe_split].append(example)
    return parts


def _verse_pairs(splits: tuple[str, ...]) -> dict[str, list[LabelledExample]]:
    """Returns pairs of verses in two translations: each verse with itself, or with a neighbor.

    Every second verse has its neighbor. Blocks of consecutive pairs form the parts.
    """
    parts: dict[str, list[LabelledExample]] = {part: [] for part in PARTS}
    for split in splits:
        for number, texts in enumerate(corpus.iter_text_pairs(split, adjacent_negatives=1)):
            part = VERSE_PARTS[number // 20 % len(VERSE_PARTS)]
            is_same = number % 2 == 0 or len(texts) < 3
            pair = texts[:2] if is_same else (texts[0], texts[2])
            location = f"{corpus.NAME}: verse {number} of {split}"
            parts[part].append(LabelledExample(pair, "same" if is_same else "other", location))
    return parts
