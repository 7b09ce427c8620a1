"""Tests that special ids, framing and limits come from a model's own files."""

import json
import logging
import os
import shutil

import hub_goldens as goldens
import pytest
from tokenizer_files import write_words

import hub
from data.framing import Framing
from data.published import special_ids
from data.tokenizers import open_tokenizer
from errors import CheckpointError, ConfigError, DataError
from eval.load_run import load_run
from hub import __main__ as command
from hub import vocabulary
from hub.families import FAMILIES
from hub.families.lookup import detect_family

GPT2 = {"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, "n_positions": 64}
LLAMA = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
T5 = {"model_type": "t5", "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
END, SENTENCE = ("<|endoftext|>",), ("<unk>", "<s>", "</s>")
CASES = {
    # special tokens, template, files, then: bos, eos, pad, decoder start; text prefix and suffix,
    # document prefix and suffix, before an empty context, stop ids
    "gpt2": (END, "", {"config": GPT2}, (0, 0, -1, 0), ((), (), (0,), (0,), (0,), (0,))),
    "pythia": (
        ("<|endoftext|>", "<|padding|>"),
        "",
        {"config": GPT2 | {"model_type": "gpt_neox"}},
        (0, 0, -1, 0),
        ((), (), (0,), (0,), (0,), (0,)),
    ),
    "llama with a template": (
        *(SENTENCE, "<s> $A", {"config": LLAMA}, (1, 2, -1, 1)),
        ((1,), (), (1,), (2,), (1,), (2,)),
    ),
    "llama without a template": (
        *(SENTENCE, "", {"config": LLAMA}, (1, 2, -1, 1)),
        ((1,), (), (1,), (2,), (1,), (2,)),
    ),
    "llama 3 with two ends": (
        *(("<unk>", "<s>", "</s>", "<eot>"), "<s> $A"),
        {
            "config": LLAMA | {"eos_token_id": [2, 3]},
            "generation_config": {"eos_token_id": [2, 3]},
            "tokenizer_config": {"bos_token": "<s>", "eos_token": {"content": "<eot>"}},
        },
        (1, 3, -1, 1),
        ((1,), (), (1,), (3,), (1,), (2, 3)),
    ),
    "gemma beside tags of HTML": (
        ("<pad>", "<eos>", "<bos>", "<unk>"),
        "<bos> $A",
        {"config": {"model_type": "gemma2", "bos_token_id": 2, "eos_token_id": 1}},
        (2, 1, 0, 2),
        ((2,), (), (2,), (1,), (2,), (1,)),
    ),
    "gemma 3 without a template": (
        *(("<pad>", "<eos>", "<bos>", "<unk>"), "", {"config": {"model_type": "gemma3_text"}}),
        *((2, 1, 0, 2), ((2,), (), (2,), (1,), (2,), (1,))),
    ),
    "bloom by its class": (
        *(("<unk>", "<s>", "</s>", "<pad>"), "", {"config": {"model_type": "bloom"}}),
        *((1, 2, 3, 1), ((), (), (1,), (2,), (1,), (2,))),
    ),
    "t5": (
        *(("<pad>", "</s>", "<unk>", "<extra_id_0>"), "$A </s>", {"config": T5}, (-1, 1, 0, 0)),
        ((), (1,), (), (1,), (1,), (1,)),
    ),
    "t5 alone": (
        *(("<pad>", "</s>", "<unk>", "<extra_id_0>"), "", {}, (-1, 1, 0, 0)),
        ((), (1,), (), (1,), (1,), (1,)),
    ),
    "opt": (
        ("<s>", "<pad>", "</s>"),
        "</s> $A",
        {"config": {"model_type": "opt", "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}},
        (2, 2, 1, 2),
        ((2,), (), (2,), (2,), (2,), (2,)),
    ),
    "bert": (
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "[CLS] $A [SEP]",
        {"config": {"model_type": "bert", "pad_token_id": 0}},
        (2, 3, 0, 2),
        ((2,), (3,), (2,), (3,), (2,), (3,)),
    ),
    "qwen, which has no bos": (
        ("<|endoftext|>", "<|im_end|>"),
        "",
        {
            "config": {"model_type": "qwen2_moe", "bos_token_id": 0, "eos_token_id": 0},
            "tokenizer_config": {"bos_token": None, "eos_token": "<|im_end|>"},
            "generation_config": {"eos_token_id": [1, 0]},
        },
        (-1, 1, 0, -1),
        ((), (), (1,), (1,), (1,), (0, 1)),
    ),
    "own tokens alone": (
        *(("<|pad|>", "<|bos|>", "<|eos|>"), "", {}, (1, 2, 0, 1)),
        ((1,), (2,), (1,), (2,), (1,), (2,)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_framed_as_its_own_files_say(tmp_path, name):
    specials, template, files, ids, frame = CASES[name]
    tags = tuple(t for t in ("<s>", "</s>", "<bos>", "[CLS]") if t not in specials)  # HTML and text
    write_words(tmp_path, specials, tags, template, **files)
    tokenizer = open_tokenizer(str(tmp_path))
    found = tokenizer.specials
    assert (found.bos, found.eos, found.pad, found.decoder_start) == ids
    f = tokenizer.framing
    texts, documents = (f.text_prefix, f.text_suffix), (f.document_prefix, f.document_suffix)
    assert (*texts, *documents, f.empty_context, f.stop_ids) == frame
    # The choice travels with the tokenizer of a run, without the files of the model.
    (tmp_path / "run").mkdir()
    tokenizer.save(tmp_path / "run")
    again = open_tokenizer(str(tmp_path / "run"))
    assert (again.specials, again.framing) == (tokenizer.specials, tokenizer.framing)
    assert again.fingerprint == tokenizer.fingerprint and again.identity == tokenizer.identity


def test_every_family_has_the_tokens_of_its_class_or_none():
    assert {*special_ids.CLASS_DEFAULTS, *special_ids.WITHOUT_DEFAULTS} == {*FAMILIES}


def test_files_that_contradict_each_other_are_named(tmp_path):
    write_words(
        tmp_path,
        SENTENCE,
        single="<s> $A",
        config=LLAMA | {"bos_token_id": 2},
        tokenizer_config={"bos_token": "<s>", "add_bos_token": False, "eos_token": "<nowhere>"},
    )
    tokenizer = open_tokenizer(str(tmp_path))
    assert (tokenizer.specials.bos, tokenizer.specials.eos) == (1, -1)
    first, second, third = tokenizer.notes
    assert "bos_token is '<s>' (1) in the tokenizer's files and 2 in config.json" in first
    assert "eos_token '<nowhere>' of tokenizer_config.json is no token" in second
    assert "the post-processor is followed" in third


def test_window_and_chat_template_are_read(tmp_path):
    chats = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "hello"}]
    write_words(tmp_path, END, config=GPT2, tokenizer_config={"chat_template": chats})
    framing = open_tokenizer(str(tmp_path)).framing
    assert (framing.window, framing.chat_template) == (64, "hello")
    (tmp_path / "chat_template.jinja").write_text("of its own file")
    assert open_tokenizer(str(tmp_path)).framing.chat_template == "of its own file"
    unlimited = {"model_max_length": 10**30, "bos_token": "<|endoftext|>"}
    write_words(tmp_path, END, config={"model_type": "mamba"}, tokenizer_config=unlimited)
    assert open_tokenizer(str(tmp_path)).framing.window == 0


@pytest.mark.parametrize("size", [23, 64])
def test_ids_beyond_or_below_the_embedding_are_read_with_a_word(tmp_path, size, caplog):
    """A fine-tune adds <pad> as id 23 of a model of 23; an embedding is padded to 64 rows."""
    config = LLAMA | {"vocab_size": size}
    ids = write_words(tmp_path, SENTENCE, added=("<pad>",), single="<s> $A", config=config)
    _, model = detect_family(goldens.FOLDER / "llama2")
    import dataclasses

    with caplog.at_level(logging.WARNING):
        found = vocabulary.load_tokenizer(tmp_path, dataclasses.replace(model, vocab_size=size))
    assert found.encode(["w0 w1"])[0].tolist() == [ids["w0"], ids["w1"]]
    assert found.vocab_size == (23 if size == 23 else 24)
    assert ("the added tokens <pad>" in caplog.text) == (size == 23)
    assert ("40 of 64 ids have no token" in caplog.text) == (size == 64)
    beyond = config | {"eos_token_id": size + 9}
    write_words(tmp_path, SENTENCE, config=beyond)
    with pytest.raises(CheckpointError, match=f"special id {size + 9} of config.json or gen"):
        vocabulary.load_tokenizer(tmp_path, dataclasses.replace(model, vocab_size=size))
    with pytest.raises(CheckpointError, match="has the id 22, the model 20 ids"):
        config["vocab_size"] = 20
        write_words(tmp_path, SENTENCE, config=config)
        vocabulary.load_tokenizer(tmp_path, dataclasses.replace(model, vocab_size=20))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config", "[" * 100_000),
        ("generation_config", '{"eos_token_id": "2"}'),
        ("config", '{"model_type": "llama", "bos_token_id": {"a": 1}}'),
        ("special_tokens_map", "[]"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, file, content):
    write_words(tmp_path, SENTENCE, config=LLAMA | {"eos_token_id": None})
    (tmp_path / f"{file}.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        open_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_damaged_framing_is_refused(tmp_path):
    write_words(tmp_path, SENTENCE, config=LLAMA)
    open_tokenizer(str(tmp_path)).save(tmp_path)
    values = json.loads((tmp_path / "framing.json").read_text())
    for changes in ({"stop_ids": [-1]}, {"stop_ids": "2"}, {"window": "64"}, {"more": 1}):
        framing = json.dumps({**values, "framing": values["framing"] | changes})
        (tmp_path / "framing.json").write_text(framing)
        with pytest.raises(DataError, match=r"framing\.json"):
            open_tokenizer(str(tmp_path))
    assert Framing().stop_ids == ()


@pytest.mark.parametrize(
    ("golden", "keys"),
    [
        ("falcon_7b", {"apply_residual_connection_post_layernorm": False, "ff_factor": 4}),
        ("bamba", {"attn_rotary_emb": 4}),
        ("bert", {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": None}),
        ("jamba", {"mamba_inner_layernorms": True, "calc_logits_for_entire_prompt": False}),
        ("mixtral", {"keys_to_ignore_at_inference": ["past_key_values"]}),
        ("llama2", {"is_llama_config": True, "rope_interleaved": False, "unsloth_fixed": True}),
        ("mistral", {"attention_bias": False, "head_dim": None, "max_sequence_length": 2048}),
        ("bloom", {"multi_query": False, "_flash_attn_2_enabled": True}),
        ("gpt2", {"predict_special_tokens": True, "sliding_window": None}),
        ("mamba", {"fused_add_norm": True, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}),
    ],
)
def test_harmless_keys_are_accepted_at_their_value_alone(tmp_path, golden, keys):
    folder = goldens.copy(golden, tmp_path / "x")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | keys))
    assert detect_family(folder)[1] == detect_family(goldens.FOLDER / golden)[1]
    for name, value in keys.items():
        other = {True: False, False: True, 4: 3}.get(value) if type(value) in (bool, int) else None
        if other is None or name in ("unsloth_fixed", "_flash_attn_2_enabled"):
            continue
        if name in ("calc_logits_for_entire_prompt", "predict_special_tokens", "fused_add_norm"):
            continue
        (folder / "config.json").write_text(json.dumps(values | {name: other}))
        with pytest.raises(ConfigError, match=name):
            detect_family(folder)


def test_what_generation_here_does_not_apply_is_named(tmp_path):
    """A greedy text of Qwen2 depends on its repetition_penalty."""
    off = {"repetition_penalty": 1.0, "num_beams": 1, "top_p": 0.9, "temperature": 0.6}
    write_words(tmp_path, END, config=GPT2, generation_config=off)
    assert open_tokenizer(str(tmp_path)).notes == ()
    asked = off | {"repetition_penalty": 1.05, "suppress_tokens": [3], "do_sample": True}
    write_words(tmp_path, END, config=GPT2 | {"min_length": 2}, generation_config=asked)
    (note,) = open_tokenizer(str(tmp_path)).notes
    named = "repetition_penalty=1.05, min_length=2, suppress_tokens=[3], temperature=0.6, top_p=0.9"
    assert f"generate with {named}, which is not applied" in note


@pytest.mark.parametrize(
    ("golden", "old", "missing"),
    [
        ("falcon_7b", {"model_type": "RefinedWebModel", "n_head": 4, "n_layer": 2}, ()),
        (
            "falcon_40b",
            {"model_type": "RefinedWeb", "n_head": 8, "n_layer": 2, "n_head_kv": 2},
            ("multi_query",),
        ),
        (
            "falcon_rw_alibi",
            {"model_type": "RefinedWebModel", "n_layer": 2},
            ("multi_query", "parallel_attn"),
        ),
    ],
)
def test_a_falcon_of_its_first_files_is_read(tmp_path, golden, old, missing):
    """Their class had other names, and no option as its default."""
    folder = goldens.copy(golden, tmp_path / "x")
    values = json.loads((folder / "config.json").read_text())
    old = old | {"n_head": values["num_attention_heads"], "auto_map": {"AutoConfig": "x.RWConfig"}}
    new = ("num_kv_heads", "new_decoder_architecture", "num_ln_in_parallel_attn", *missing)
    new += ("num_attention_heads", "num_hidden_layers", "rope_parameters", "ffn_hidden_size")
    for name in new:
        values.pop(name, None)
    (folder / "config.json").write_text(json.dumps(values | old))
    family, config = detect_family(folder)
    assert family.model_type == "falcon"
    assert config == detect_family(goldens.FOLDER / golden)[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but the weights"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000, but numbers are at most"),
        ({"hidden_size": 10**400}, r"hidden_size is 1000*\.\.\., but numbers are at most"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"hidden_act": "x" * 10_000}, "hidden_act is .*texts have at most"),
        ({"hidden_size": "32"}, "not a valid config"),
        ({"rope_scaling": [1]}, "not a valid config"),
    ],
)
def test_hostile_configs_are_refused_before_anything_is_made(tmp_path, changes, said):
    folder = goldens.copy("llama2", tmp_path / "x")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=said) as error:
        hub.load(folder)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_files_of_hostile_size_or_nesting_are_refused(tmp_path):
    folder = goldens.copy("llama_sharded", tmp_path / "x")
    index = folder / "model.safetensors.index.json"
    good = index.read_text()
    for content in ('{"weight_map": ' + "[" * 100_000, '{"a":' * 100_000):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="index.json is not JSON"):
            hub.load(folder)
    index.write_text(json.dumps({"weight_map": {"a": "n" * 5000}}))
    with pytest.raises(CheckpointError, match="or too long"):
        hub.load(folder)
    index.write_text(good)
    os.truncate(folder / "config.json", 4 << 30)  # a sparse file of 4 GB
    with pytest.raises(CheckpointError, match="has 4294967296 bytes"):
        hub.load(folder)


def test_an_import_says_and_records_what_frames_texts(tmp_path, capsys, caplog):
    folder = goldens.copy("gpt2", tmp_path / "x")
    values = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 0}
    write_words(folder, END, config=values | {"bos_token_id": 0})
    command.run(["import", str(folder), f"--workdir={tmp_path / 'run'}"])
    said = capsys.readouterr().out.splitlines()
    assert {
        "before a context or a prompt: nothing",
        "before a text without context: '<|endoftext|>' (0)",
        "a text ends with: '<|endoftext|>' (0)",
    } < set(said)
    framing = json.loads((tmp_path / "run" / "run.json").read_text())["data"]["framing"]
    assert (framing["text_prefix"], framing["empty_context"]) == ("nothing", "'<|endoftext|>' (0)")
    assert framing["embedding"] == "107 of 128 ids have no token, and decode to nothing"
    assert open_tokenizer(str(tmp_path / "run" / "tokenizer")).framing.text_prefix == ()
    command.run(["import", str(folder), f"--workdir={tmp_path / 'bos'}", "--framing=bos"])
    assert open_tokenizer(str(tmp_path / "bos" / "tokenizer")).framing.text_prefix == (0,)
    assert "before a context or a prompt: '<|endoftext|>' (0)" in capsys.readouterr().out
    # The files of the tokenizer are changed after the import.
    shutil.copy(tmp_path / "run/tokenizer/framing.json", tmp_path / "bos/tokenizer/framing.json")
    with caplog.at_level(logging.WARNING):
        load_run(tmp_path / "bos")
    assert (
        "records before a context or a prompt: '<|endoftext|>' (0); the tokenizer's" in caplog.text
    )
