"""Makes tiny models with transformers, and asks lm-eval's own backend of them; run by its Python.

    python lm_eval_models.py FOLDER REQUESTS.json

FOLDER gets a folder per model; answers.json has the answers by model and kind of request.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers as hf
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WINDOW = 320
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tokenizer(folder: Path, texts: list[str], bos: str, eos: str, frames: bool, **keys) -> None:
    """Writes a BPE of bytes; with `frames` its post-processor puts bos before a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = list(dict.fromkeys([bos, eos, "<|start|>", "<|end|>"]))
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    if frames:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    wrapped = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=eos, **keys
    )
    if frames:
        wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)


def make_models(root: Path, texts: list[str]) -> dict[str, Path]:
    """Writes a tiny Llama, GPT-2 and Mamba-2 with random weights that speak clearly."""
    common = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    configs = {
        "llama": hf.LlamaConfig(
            **common | {"eos_token_id": 1, "pad_token_id": 1},
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=WINDOW,
        ),
        "gpt2": hf.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=WINDOW),
        "mamba2": hf.Mamba2Config(
            **common,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=16,
            head_dim=16,
            num_heads=4,
            n_groups=1,
            chunk_size=16,
        ),
    }
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
        if name == "llama":  # A reply ends at two ids, as Llama 3's.
            model.generation_config.eos_token_id = [1, 3]
        folders[name] = root / name
        model.save_pretrained(root / name)
        if name == "llama":
            tokenizer(root / name, texts, "<s>", "</s>", True)
        else:
            tokenizer(root / name, texts, "<|endoftext|>", "<|endoftext|>", False)
    return folders


def asked(arguments: list) -> list:
    """Returns requests as lm-eval makes them."""
    return [SimpleNamespace(args=tuple(x)) for x in arguments]


def main() -> None:
    """Writes the models and the answers."""
    root, requests = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    answers: dict = {}
    for name, folder in make_models(root, requests["texts"]).items():
        # With its cache, requests of equal tokens but other borders get each other's logits.
        options = {"dtype": "float32", "device": "cpu", "batch_size": 1, "logits_cache": False}
        model = HFLM(pretrained=str(folder), **options)
        answers[name] = {
            "loglikelihood": model.loglikelihood(asked(requests["pairs"]), disable_tqdm=True),
            "rolling": model.loglikelihood_rolling(asked(requests["rolling"]), disable_tqdm=True),
            "generate": model.generate_until(asked(requests["generate"]), disable_tqdm=True),
            "max_length": model.max_length,
        }
        if name == "llama":
            chats = [model.apply_chat_template(chat) for chat in requests["chats"]]
            limit = {"until": ["<|end|>"], "max_gen_toks": 12}
            answers[name]["chats"] = chats
            answers[name]["replies"] = model.generate_until(
                asked([(chat, limit) for chat in chats]), disable_tqdm=True
            )
            answers[name]["unfinished"] = model.apply_chat_template(
                [*requests["chats"][0], {"role": "assistant", "content": "So "}], False
            )
    (root / "answers.json").write_text(json.dumps(answers))


main()
