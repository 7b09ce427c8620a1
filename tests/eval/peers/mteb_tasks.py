"""Runs mteb on a task of its two kinds, with sentence-transformers and with an imported run.

    python mteb_tasks.py make FOLDER                         writes a tiny BERT, and FOLDER-cls
    python mteb_tasks.py ask FOLDER RUN SITE_PACKAGES        writes FOLDER/scores.json

RUN is the imported model, SITE_PACKAGES has the packages of this project.
"""

import json
import random
import sys
from pathlib import Path

import datasets
import mteb
import torch
import transformers as hf
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer, models

WORDS = ["the", "and", "of", "god", "light", "earth", "water", "day", "night", "heaven"]


def sentences(seed: int, count: int) -> list[str]:
    """Returns random sentences, the first of which is long."""
    draw = random.Random(seed)
    lengths = [40] + [draw.randint(1, 9) for _ in range(count - 1)]
    return [" ".join(draw.choices(WORDS, k=n)) for n in lengths]


def metadata(name: str, kind: str, metric: str) -> TaskMetadata:
    """Returns the description of a task that needs no hub."""
    return TaskMetadata(
        name=name,
        description="A task of this test.",
        dataset={"path": "none", "revision": "0"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=metric,
        reference=None,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )


class Similar(AbsTaskSTS):
    """Pairs of sentences with random scores."""

    metadata = metadata("Similar", "STS", "cosine_spearman")

    def load_data(self, **kwargs: object) -> None:
        """Makes the pairs."""
        columns = {"sentence1": sentences(1, 30), "sentence2": sentences(2, 30)}
        columns["score"] = [float(i % 6) for i in range(30)]
        self.dataset = {"test": datasets.Dataset.from_dict(columns)}
        self.data_loaded = True


class Found(AbsTaskRetrieval):
    """Questions that are the beginning of the document that answers them."""

    metadata = metadata("Found", "Retrieval", "ndcg_at_10")

    def load_data(self, **kwargs: object) -> None:
        """Makes the documents."""
        texts = sentences(3, 20)
        corpus = {"id": [f"d{i}" for i in range(20)], "title": [""] * 20, "text": texts}
        queries = {
            "id": [f"q{i}" for i in range(20)],
            "text": [t[: len(t) // 2 + 1] for t in texts],
        }
        self.dataset = {
            "default": {
                "test": {
                    "corpus": datasets.Dataset.from_dict(corpus),
                    "queries": datasets.Dataset.from_dict(queries),
                    "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in range(20)},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


def make(folder: Path) -> None:
    """Writes a tiny BERT of 64 positions with a tokenizer that frames texts."""
    folder.mkdir(parents=True)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(names))
    hf.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = hf.BertConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = hf.BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    model.save_pretrained(folder)
    transformer = models.Transformer(str(folder), max_seq_length=16)
    width = transformer.get_embedding_dimension()
    pooling = models.Pooling(width, pooling_mode="cls")
    SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu").save(
        f"{folder}-cls"
    )


def ask(folder: Path, run: Path, packages: str) -> None:
    """Writes the scores and some embeddings of both."""
    sys.path.append(packages)  # Behind those of this environment, which win.
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from eval.adapters.mteb import MtebEncoder
    from eval.load_run import load_run

    if (folder / "modules.json").exists():
        theirs = SentenceTransformer(str(folder), device="cpu")
    else:
        transformer = models.Transformer(str(folder))
        width = transformer.get_embedding_dimension()
        theirs = SentenceTransformer(modules=[transformer, models.Pooling(width)], device="cpu")
    ours = MtebEncoder(load_run(run)[0])
    texts, found = sentences(1, 5), {}
    for name, model in (("theirs", theirs), ("ours", ours)):
        results = mteb.evaluate(model, [Similar(), Found()], cache=None, co2_tracker=False)
        found[name] = {
            "scores": {x.task_name: x.get_score() for x in results.task_results},
            "vectors": model.encode(texts).tolist(),
            "one": model.encode(texts[0]).tolist(),
        }
    (folder / "scores.json").write_text(json.dumps(found))


if sys.argv[1] == "make":
    make(Path(sys.argv[2]))
else:
    ask(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
