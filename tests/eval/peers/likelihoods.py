"""Makes tiny models with their own classes of tokenizers, and scores texts; run by peers' Python.

    python likelihoods.py FOLDER REQUESTS.json

FOLDER gets a folder per model; answers.json has the log-likelihood of each pair (context, text) by
model, from transformers alone: its tokenizer frames a text, and the model gives the logits.
"""

import json
import sys
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 256}


def merges(texts: list[str], specials: list[str], has_bytes: bool) -> dict:
    """Returns the arguments of a tokenizer of pairs of bytes, or of pairs of characters."""
    made = Tokenizer(models.BPE(unk_token=None if has_bytes else "<unk>"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = words if has_bytes else pre_tokenizers.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if has_bytes else []
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    definition = json.loads(made.to_str())["model"]
    pairs = [tuple(pair) for pair in definition["merges"]]
    return {"vocab": definition["vocab"], "merges": pairs}


def pieces(texts: list[str], specials: list[str]) -> list[tuple[str, float]]:
    """Returns the vocabulary of a Unigram tokenizer."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=350, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return [tuple(piece) for piece in json.loads(made.to_str())["model"]["vocab"]]


def make(texts: list[str]) -> dict[str, tuple]:
    """Returns the config and the tokenizer of each model."""
    end, sentence = ["<|endoftext|>"], ["<unk>", "<s>", "</s>"]
    opt, gemma = ["<s>", "<pad>", "</s>", "<unk>"], ["<pad>", "<eos>", "<bos>", "<unk>"]
    opt_tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    framed = hf.GemmaTokenizer(**merges(texts, [*gemma, "<s>", "</s>"], False))
    bos = [("<bos>", framed.convert_tokens_to_ids("<bos>"))]
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=bos
    )
    return {
        "gpt2": (
            hf.GPT2Config(
                vocab_size=512,
                n_positions=256,
                n_embd=32,
                n_layer=2,
                n_head=4,
                bos_token_id=0,
                eos_token_id=0,
            ),  # fmt: skip
            hf.GPT2Tokenizer(**merges(texts, end, True)),
        ),
        "llama": (
            hf.LlamaConfig(**SIZES, **HEADS, vocab_size=512, bos_token_id=1, eos_token_id=2),
            hf.LlamaTokenizer(**merges(texts, sentence, False), add_bos_token=True),
        ),
        "t5": (
            hf.T5Config(
                vocab_size=512,
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
            ),  # fmt: skip
            hf.T5Tokenizer(vocab=pieces(texts, ["<pad>", "</s>", "<unk>"])),
        ),
        "opt": (
            hf.OPTConfig(
                **HEADS,
                vocab_size=512,
                hidden_size=32,
                ffn_dim=64,
                num_hidden_layers=2,
                word_embed_proj_dim=32,
                bos_token_id=2,
                eos_token_id=2,
                pad_token_id=1,
            ),  # fmt: skip
            hf.GPT2Tokenizer(
                **merges(texts, opt, True), **opt_tokens, pad_token="<pad>", add_bos_token=True
            ),
        ),
        "gemma": (
            hf.Gemma2Config(
                **SIZES,
                **HEADS,
                vocab_size=512,
                num_key_value_heads=2,
                head_dim=8,
                query_pre_attn_scalar=8,
                bos_token_id=2,
                eos_token_id=1,
                pad_token_id=0,
            ),  # fmt: skip
            framed,
        ),
    }


def save(folder: Path, config: hf.PretrainedConfig, tokenizer: hf.PreTrainedTokenizerBase) -> None:
    """Writes a model with random weights that speak clearly, and its tokenizer."""
    torch.manual_seed(0)
    kind = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2 if config.is_encoder_decoder else 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def log_probability(logits: torch.Tensor, ids: list[int]) -> float:
    """Returns the sum of log p over the last tokens of a row."""
    scores = torch.log_softmax(logits[0, -len(ids) :].double(), dim=-1)
    return float(scores[torch.arange(len(ids)), ids].sum())


def score(model: hf.PreTrainedModel, tokenizer: hf.PreTrainedTokenizerBase, pair: list) -> float:
    """Returns log p of a text after its context in the frame of the tokenizer.

    A text without a context follows what the tokenizer puts before a text, else its end of text.
    """
    context, text = pair
    before = tokenizer(context).input_ids
    if model.config.is_encoder_decoder:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        out = model(input_ids=torch.tensor([before]), labels=torch.tensor([ids]))
        return log_probability(out.logits, ids)
    whole = tokenizer(context + text).input_ids
    before = before or [tokenizer.eos_token_id]
    whole = whole if whole[: len(before)] == before else before + whole
    logits = model(input_ids=torch.tensor([whole[:-1]])).logits
    return log_probability(logits, whole[len(before) :])


@torch.no_grad()
def main() -> None:
    """Writes the models and the answers."""
    root, requests = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    answers = {}
    for name, parts in make(requests["texts"]).items():
        save(root / name, *parts)
        tokenizer = hf.AutoTokenizer.from_pretrained(root / name)
        kind = hf.AutoModelForSeq2SeqLM if name == "t5" else hf.AutoModelForCausalLM
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = kind.from_pretrained(root / name, **options).eval()
        answers[name] = [score(model, tokenizer, pair) for pair in requests["pairs"]]
        answers[f"{name} ids"] = tokenizer(requests["pairs"][0][0]).input_ids
    (root / "answers.json").write_text(json.dumps(answers))


main()
