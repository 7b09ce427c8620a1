"""Tests what an export says of texts: what frames them, what ends them, and what is left out."""

import dataclasses
import json
import subprocess

import hub_goldens as goldens
import numpy as np
import peers
import pytest
import tiny
import tokenizers as hf
from tokenizer_files import write_words

import hub
from arch.layers.pooler import PoolerConfig
from arch.mixers.attention import AttentionConfig
from data.settings import DataConfig
from data.tokenizers import open_tokenizer, train_bpe
from hub import model_card, run, safetensors_io
from hub.families import lookup
from training.settings import Settings, TrainConfig

TEXT = ["some words, and more words of a text"] * 9


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXT, 300)


def trained(objective="causal_lm", **data):
    return Settings(
        model=tiny.config(vocab_size=500, depth=1),
        objective=objective,
        data=DataConfig(**data),
        train=TrainConfig(steps=9, seq_len=64),
    )


def strict(text: str):
    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("is_causal", [True, False])
def test_an_exported_tokenizer_frames_a_text_as_the_run_did(bpe, tmp_path, is_causal):
    settings, specials = trained(), bpe.specials
    use = run.text_use(settings, bpe, is_causal=is_causal)
    hub.save(tiny.model(settings.model), settings.model, tmp_path, tokenizer=bpe, text_use=use)
    found = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT[0]).ids
    end = [] if is_causal else [specials.eos]
    assert found == [specials.bos, *bpe.encode([TEXT[0]])[0], *end]
    # A run that starts from the export has the same tokenizer.
    assert bpe.fingerprint in run.vocabulary.fingerprints(bpe, tmp_path)
    again = open_tokenizer(str(tmp_path))
    assert again.specials == dataclasses.replace(specials, sentinels=again.specials.sentinels)
    assert again.framing.text_prefix == (specials.bos,)


def test_a_chat_ends_with_its_marker(tmp_path):
    write_words(
        tmp_path,
        ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"),
        single="<s> $A",
        config={"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2},
    )
    tokenizer = open_tokenizer(str(tmp_path))
    use = run.text_use(
        trained(source="jsonl", path="chats.jsonl", chat_template="chatml"),
        tokenizer,
        is_causal=True,
    )
    assert use.stop_ids == (4, 2) and "<|im_start|>" in use.chat_template
    keys = run.make_extra_config(trained(), tokenizer, use)
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (1, 4)
    (tmp_path / "out").mkdir()
    run.vocabulary.save_tokenizer(tokenizer, tmp_path / "out", use)
    names = strict((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (names["eos_token"], names["bos_token"]) == ("<|im_end|>", "<s>")
    assert names["chat_template"] == use.chat_template


def test_a_published_tokenizer_keeps_its_file(tmp_path):
    write_words(tmp_path, ("<|endoftext|>",), config={"model_type": "gpt2", "eos_token_id": 0})
    tokenizer = open_tokenizer(str(tmp_path))
    published = dataclasses.replace(trained(), train=TrainConfig(steps=0, seq_len=8))
    use = run.text_use(published, tokenizer, is_causal=True)
    assert use.prefix == () and use.stop_ids == (0,)
    assert run.vocabulary.framed_definition(tokenizer, use) == tokenizer.definition.decode()


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_config_is_strict_json_with_the_keys_of_both_generations(tmp_path, mixer):
    config = tiny.config(mixer, "none" if mixer == "mamba2" else "mlp", depth=1)
    hub.save(tiny.model(config), config, tmp_path)
    keys = strict((tmp_path / "config.json").read_text())
    if mixer == "attention":
        assert keys["rope_parameters"] == {"rope_theta": keys["rope_theta"], "rope_type": "default"}
    else:
        assert keys["time_step_limit"][1] == float(np.finfo(np.float32).max)
    assert lookup.find_export_family(lookup.detect_family(tmp_path)[1])[1]


def test_encoders_are_exported_as_what_they_are(tmp_path):
    """A bare encoder (MiniLM) has the names of BertModel, and a BERT without a pooler no NSP."""
    model, config, _ = hub.load(goldens.FOLDER / "bert")
    tensors = goldens.arrays("bert", "model")
    bare = {n.removeprefix("bert."): t for n, t in tensors.items() if not n.startswith("cls.")}
    kinds = {
        "BertModel": bare,
        "BertForMaskedLM": {
            n: t for n, t in tensors.items() if "seq_relationship" not in n and "pooler" not in n
        },
    }
    for name, kept in kinds.items():
        folder = goldens.copy("bert", tmp_path / name, exclude=("model.safetensors",))
        safetensors_io.write_shards(folder, kept.items())
        model, config, _ = hub.load(folder)
        hub.save(model, config, tmp_path / f"{name}-out")
        keys = json.loads((tmp_path / f"{name}-out" / "config.json").read_text())
        assert keys["architectures"] == [name]
        written = safetensors_io.read_file(tmp_path / f"{name}-out" / "model.safetensors")
        assert set(written) <= set(kept)
        for tensor_name, tensor in written.items():
            np.testing.assert_array_equal(tensor, kept[tensor_name])
        again = hub.load(tmp_path / f"{name}-out")[1]
        assert again == config and (name == "BertModel" or config.pooler == PoolerConfig())


def test_a_card_has_no_path_of_this_machine_and_no_damaged_score(tmp_path):
    record = {
        "settings": {
            "data": {"source": "text", "path": "/home/me/texts/mine.txt", "tokenizer": "/a/b/t"},
            "train": {"batch_size": 1, "seq_len": 2},
            "objective": "causal_lm",
            "seed": 0,
        }
    }
    card = model_card.format_card(record, run.Path("/home/me/runs/first"), 1, "X")
    assert "/home" not in card and "/a/b" not in card
    (tmp_path / "eval/1").mkdir(parents=True)
    for name, scores in (("a", [{"name": "x", "value": 0.5}]), ("b", [1, {}]), ("c", 3)):
        (tmp_path / f"eval/1/{name}.json").write_text(json.dumps({"scores": scores}))
    assert model_card.format_card(record, tmp_path, 1, "X").endswith(
        "|---|---|\n| a: x | 0.5000 |\n"
    )
    assert "| data | text mine.txt " in card and "| tokenizer | t (" in card


READER = """
import json, sys, torch, transformers
torch.manual_seed(0)
for folder in sys.argv[1:]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer("some words", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=-1)
    stops = model.generation_config.eos_token_id
    print(json.dumps([inputs["input_ids"][0].tolist(), ids[0].tolist(), stops]))
"""


@pytest.mark.slow
def test_a_published_reader_gives_the_same_greedy_tokens(bpe, tmp_path):
    """Skipped where torch and transformers cannot be had."""
    python = peers.peer_python()
    kinds = {
        "llama": tiny.config(vocab_size=bpe.vocab_size, depth=2),
        "mamba2": tiny.config("mamba2", "none", vocab_size=bpe.vocab_size, depth=2),
        "mixtral": tiny.config("attention", "moe", vocab_size=bpe.vocab_size, depth=2),
        "mistral": tiny.config("local_attention", "mlp", vocab_size=bpe.vocab_size, depth=2),
        "grouped": tiny.config(
            vocab_size=bpe.vocab_size, depth=2, attention=AttentionConfig(heads=2, kv_heads=1)
        ),
    }
    settings = trained()
    use = run.text_use(settings, bpe, is_causal=True)
    for name, config in kinds.items():
        keys = run.make_extra_config(dataclasses.replace(settings, model=config), bpe, use)
        hub.save(
            *(tiny.model(config), config, tmp_path / name),
            tokenizer=bpe,
            text_use=use,
            extra_config=keys,
        )
    folders = [str(tmp_path / name) for name in kinds]
    done = subprocess.run(
        [python, "-c", READER, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(kinds)
    for folder, (prompt, ids, stops) in zip(folders, lines, strict=True):
        assert prompt == [bpe.specials.bos, *bpe.encode(["some words"])[0].tolist()]
        assert stops == bpe.specials.eos
        expected = list(prompt)
        for _ in range(8):
            row = np.array([expected], np.int32)
            inputs = {"input_ids": row, "attention_mask": np.ones_like(row)}
            logits = hub.forward(folder, inputs, "float32")["logits"]
            expected.append(int(logits[0, -1].argmax()))
        assert ids == expected, folder
