"""Fine-tunes a BERT with transformers, by its class with an added layer and the recipe of BERT.

    python finetune_bert.py make FOLDER VOCAB           writes a tiny random BERT; a word a line
    python finetune_bert.py train FOLDER DATA OUT       writes the test accuracy of each seed

DATA is JSON: train and test as lists of [text, class], classes, and the settings of the recipe.
"""

import json
import sys
from pathlib import Path

import torch
import transformers as hf

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make(folder: Path, words: list[str]) -> None:
    """Writes a BERT with random weights and a tokenizer of these words."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *words]))
    hf.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = hf.BertConfig(
        vocab_size=len(SPECIALS) + len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    hf.BertForPreTraining(config).save_pretrained(folder)


def train(folder: Path, data: dict, seed: int) -> float:
    """Returns the test accuracy after the recipe."""
    recipe, classes = data["recipe"], data["classes"]
    torch.manual_seed(seed)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.BertForSequenceClassification.from_pretrained(folder, num_labels=len(classes))
    plain = [p for n, p in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    plain_ids = {id(p) for p in plain}
    decayed = [p for p in model.parameters() if id(p) not in plain_ids]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=recipe["learning_rate"],
        betas=(0.9, 0.999),
        eps=1e-6,
    )
    examples, size = data["train"], recipe["batch_size"]
    steps = recipe["epochs"] * -(-len(examples) // size)
    warmup = round(recipe["warmup"] * steps)
    schedule = hf.get_linear_schedule_with_warmup(optimizer, warmup, steps)

    def encode(batch: list) -> dict:
        texts = [text for text, _ in batch]
        return tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=recipe["max_tokens"],
            return_tensors="pt",
        )

    model.train()
    for _ in range(recipe["epochs"]):
        order = torch.randperm(len(examples)).tolist()
        for start in range(0, len(examples), size):
            batch = [examples[i] for i in order[start : start + size]]
            labels = torch.tensor([classes.index(label) for _, label in batch])
            model(**encode(batch), labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(data["test"]), 64):
            batch = data["test"][start : start + 64]
            predicted = model(**encode(batch)).logits.argmax(-1).tolist()
            right += sum(classes[k] == y for k, (_, y) in zip(predicted, batch, strict=True))
    return right / len(data["test"])


if sys.argv[1] == "make":
    make(Path(sys.argv[2]), Path(sys.argv[3]).read_text().split())
else:
    content = json.loads(Path(sys.argv[3]).read_text())
    seeds = range(content["recipe"]["seeds"])
    scores = [train(Path(sys.argv[2]), content, seed) for seed in seeds]
    Path(sys.argv[4]).write_text(json.dumps(scores))
