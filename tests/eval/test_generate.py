"""Generation of text: streaming, stop strings, limits, files of prompts, chats, the command."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizers as hf
from oracle import VOCAB, eval_context, oracle

import generate as command
from arch import SequenceInfo
from arch.layers.positions import PositionsConfig
from data.chats.templates import CHAT_TEMPLATES, parse_chat, reply_prompt
from data.published.json_tokenizer import JsonTokenizer
from data.readers.read_policy import ErrorPolicy
from data.readers.read_stats import ReadStats
from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from eval.__main__ import run as evaluate
from eval.generate import Sampling, check_positions, generate, sample_token, stream
from eval.load_run import load_run
from eval.prompts import read_prompts
from eval.text_generation import (
    TextRequest,
    continue_texts,
    decode_continuation,
    decoding_context,
    stream_text,
    text_model,
)
from hub.run import export_run
from settings.run_json import add_hash


@pytest.fixture(scope="module")
def reader():
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    return eval_context(tiny.model(cfg), length=32, config=cfg, batch=2)


def written(pieces) -> tuple[list[str], object]:
    """Returns the pieces that a stream yields, and what it returns."""
    shown = []
    while True:
        try:
            shown.append(next(pieces))
        except StopIteration as end:
            return shown, end.value


def request(text: str, n: int = 8, number: int = 0, **more) -> TextRequest:
    prompt = np.array([ByteTokenizer().specials.bos, *text.encode()], np.int32)
    return TextRequest(number, prompt, n, **more)


def test_a_stream_gives_the_text_of_a_batch(reader):
    target, hot = text_model(reader), Sampling(temperature=3.0, top_k=100)
    requests = [request("abc", number=i, sampling=hot) for i in (0, 5)]
    requests += [request("some longer words", number=2)]
    together = continue_texts(target, requests, seed=1)
    assert together[0].text != together[1].text
    for one, expected in zip(requests, together, strict=True):
        pieces, result = written(stream_text(target, one, seed=1))
        assert result == expected and "".join(pieces) == expected.text
    (alone,) = continue_texts(target._replace(batch_size=1), requests[1:2], seed=1)
    assert alone == together[1]


def test_a_text_ends_before_a_stop_string_and_shows_no_part_of_it():
    target = text_model(oracle(length=64))
    one = request("ab", 20, stops=("hij", "efx"))
    pieces, result = written(stream_text(target, one, seed=0))
    assert "".join(pieces) == "cdefg" == result.text and result.finish_reason == "stop"
    assert not any("h" in piece for piece in pieces)
    assert continue_texts(target, [one], seed=0) == [result]
    assert continue_texts(target, [request("ab", 3)], seed=0)[0].finish_reason == "length"


def test_a_character_of_several_bytes_is_shown_when_it_is_complete():
    target = text_model(oracle(length=64))
    prompt = np.array([target.tokenizer.specials.bos, *b"a", 0xC1])
    one = TextRequest(0, prompt, 3)  # the oracle continues with the bytes C2, C3 and C4
    pieces, result = written(stream_text(target, one, seed=0))
    assert "".join(pieces) == result.text and result.n_tokens == 3
    assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_a_long_prompt_is_not_decoded_for_each_token(monkeypatch):
    target, counts = text_model(oracle(length=64)), []
    decode = target.tokenizer.decode
    monkeypatch.setattr(
        target.tokenizer, "decode", lambda ids: (counts.append(len(ids)), decode(ids))[1]
    )
    one = request("ab" * 150, 20, stops=("hij",))
    _, result = written(stream_text(target, one, seed=0))
    assert result.text == "cdefg" and counts.count(301) == 1
    assert sum(counts) < 301 + 1000


def test_new_tokens_decode_after_the_end_of_a_prompt_as_after_all_of_it():
    words = {f"\u2581w{i}": i for i in range(300)} | {"<bos>": 300, "\u2581": 301}
    vocab = words | {f"<0x{i:02X}>": 302 + i for i in range(256)}
    raw = hf.Tokenizer(hf.models.BPE(vocab, [], byte_fallback=True))
    parts = [hf.decoders.Replace("\u2581", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse()]
    raw.decoder = hf.decoders.Sequence([*parts, hf.decoders.Strip(" ", 1, 0)])
    raw.add_special_tokens(["<bos>"])
    tokenizer = JsonTokenizer(raw.to_str().encode(), "words")
    letters = [302 + b for b in "\u6211".encode()] * 40  # one run of bytes, valid as a whole
    ids = np.array([300, *range(200), *letters, *range(100), 300, 300, *range(5), *letters[:8]])
    contexts = []
    for n in range(1, len(ids) - 4):
        contexts.append(decoding_context(tokenizer, ids[:n]))
        after_all, after_end = (
            decode_continuation(tokenizer, context, ids[n : n + 4])
            for context in (ids[:n], contexts[-1])
        )
        assert after_end == after_all, n
    assert max(map(len, contexts[:200])) == 16 < len(contexts[320])
    specials = np.array([*range(50), *[300] * 40])
    assert decode_continuation(tokenizer, decoding_context(tokenizer, specials), [3]) == " w3"


@pytest.mark.parametrize(
    "changes",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": 1e9}, {"top_k": -1}]
    + [{"top_p": 0.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"min_p": 1.1}],
    ids=str,
)
def test_sampling_out_of_range_is_refused(changes):
    with pytest.raises(ConfigError, match=rf"Sampling\.{next(iter(changes))} is .* must be"):
        Sampling(**changes)


def test_extreme_settings_in_range_still_sample():
    logits = jnp.array([[0.0, 5.0, jnp.finfo(jnp.float32).min]])
    for sampling in (
        Sampling(1.2e-38),
        Sampling(1000.0, top_k=1),
        Sampling(top_k=10**6, min_p=1.0),
    ):
        assert sample_token(logits, jax.random.key(0), sampling).tolist() == [1]


def test_of_equal_logits_no_more_are_allowed_than_asked_for():
    """In bfloat16 many logits are equal; top_k=1 is the choice of argmax, also among them."""
    logits = jnp.tile(jnp.array([1.0, 2.0, 2.0, 2.0], jnp.bfloat16), (300, 1))
    allowed = {
        Sampling(top_k=1): {1},
        Sampling(top_k=2): {1, 2},
        Sampling(top_p=0.2): {1},  # Each of the three has .296.
        Sampling(top_p=0.5): {1, 2},
        Sampling(top_k=3, top_p=0.5): {1, 2},
    }
    for sampling, expected in allowed.items():
        assert {*np.asarray(sample_token(logits, jax.random.key(0), sampling))} == expected


def test_a_state_takes_no_more_tokens_than_it_has_slots():
    model = tiny.model(tiny.config(depth=2))

    def step(state, n: int):
        seq = SequenceInfo(jnp.full((1, n), 4), jnp.ones((1, n), jnp.int32))
        hidden, _, state = model(np.ones((1, n), np.int32), seq, state=state)
        return hidden, state

    hidden, state = step(model.init_state(1, 5), 5)
    assert jnp.isfinite(hidden).all()
    with pytest.raises(ValueError, match="1 tokens after 5 do not fit a state for 5; give"):
        step(state, 1)
    assert jnp.isnan(jax.jit(step, static_argnums=1)(state, 1)[0]).all()


def test_a_model_is_not_continued_beyond_its_positions():
    cfg = tiny.config(depth=1, positions=PositionsConfig(learned=True, max_length=6))
    model, key = tiny.model(cfg), jax.random.key(0)
    with pytest.raises(
        ConfigError, match="4 tokens and 3 new .* has 6 .*largest max_new_tokens: 2"
    ):
        generate(model, [np.arange(4)], 3, key=key)
    with pytest.raises(ConfigError, match="need 10 positions.*; shorten the prompt"):
        list(stream(model, np.arange(7), 3, key=key))
    with pytest.raises(ConfigError, match="a prompt has no tokens"):
        check_positions(model, 0, 1)
    assert generate(model, [], 3, key=key) == []


def test_the_prompt_of_a_chat_is_what_training_reads():
    messages = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Why")]
    record = [{"role": role, "content": text} for role, text in messages]
    for template in CHAT_TEMPLATES.values():
        reply = {"role": "assistant", "content": "x"}
        document = parse_chat(
            {"messages": [*record, reply]}, template, "here", ErrorPolicy("abort", "", ReadStats())
        )
        parts = [part._replace(weight=0.0) for part in document.parts]
        assert [*reply_prompt(messages, template)] == parts[:-1]
    with pytest.raises(DataError, match="the last message is no question"):
        reply_prompt(messages[:3], CHAT_TEMPLATES["chatml"])


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs the command on the oracle, and returns its stdout and stderr."""
    monkeypatch.setattr(command, "load_run", lambda path, step: (oracle(length=32), None, 0))

    def run(*argv: str) -> tuple[str, str]:
        command.run(["--run=here", "--temperature=0", *argv])
        return capsys.readouterr()

    return run


def test_the_command_prints_prompt_and_continuation(main):
    assert main("--prompt=abc", "--max_new_tokens=3") == ("abcdef\n", "")
    out, said = main("--prompt=abc", "--max_new_tokens=40", "--stop=m", "--stop=k")
    assert out == "abcdefghij\n"
    assert "4 tokens of the prompt and 40 new ones exceed the window of 32 tokens" in said
    assert len(main("--prompt=a")[0]) <= 32  # by default no more than a row of training
    assert "exceed the window" in main("--prompt=" + 40 * "a", "--stop=b")[1]


def test_the_command_continues_a_file_of_prompts(main, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "ab"}\n\n{"prompt": "mnop"}\n')
    out = tmp_path / "out.jsonl"
    main(f"--prompts={lines}", "--max_new_tokens=2", f"--out={out}")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["cd", "qr"]
    assert rows[0] | {"text": ""} == {
        "prompt": "ab", "text": "", "new_tokens": 2, "finish_reason": "length"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="exists already; give another file"):
        main(f"--prompts={lines}", f"--out={out}")
    lines.write_text('{"prompt": "ab"}\n{"text": "x"}\n')
    with pytest.raises(DataError, match='line 2 has neither "prompt", a text, nor "messages"'):
        main(f"--prompts={lines}")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        main(f"--prompts={tmp_path / 'absent'}")
    lines.write_text("\n")
    with pytest.raises(DataError, match="has no prompts; write one on each line"):
        main(f"--prompts={lines}")


@pytest.mark.parametrize("suffix", ["jsonl", "NDJSON", "txt"])
def test_only_line_breaks_divide_prompts(tmp_path, suffix):
    """U+2028, a form feed and U+0085 end lines for `str.splitlines`; a BOM is no text."""
    texts = ["a\u2028b", "c\x0cd\x85e"]
    lines = [f'{{"prompt": "{t}"}}' for t in ("a\u2028b", "c\\u000cd\x85e")]
    path = tmp_path / f"prompts.{suffix}"
    content = "\r\n".join(texts if suffix == "txt" else lines)
    path.write_bytes(b"\xef\xbb\xbf" + content.encode() + b"\r\n")
    assert [prompt.shown for prompt in read_prompts(path, None)] == texts


def test_the_command_replies_to_what_is_typed(main, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n\nxy\n"))
    out, _ = main("--chat", "--chat_template=vicuna", "--max_new_tokens=2")
    assert out == '!"\n!"\n'  # the oracle continues the space after "ASSISTANT:"
    with pytest.raises(ConfigError, match="the run was trained on no chats"):
        main("--chat", "--prompt=x")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top_p=1.5"], "--top_p is 1.5, must be > 0 and <= 1"),
        (["--temperature=hot"], "--temperature is 'hot'"),
        (["--max_new_tokens=-1"], "--max_new_tokens is -1, must be >= 0"),
        (["--seed=-1"], "--seed is -1"),
        (["--seed=4294967296"], "--seed is 4294967296, must be >= 0 and <= 4,294,967,295"),
        (["--step=-7"], "--step is -7, must be >= 0"),
        (["--top_q=1"], "unrecognized arguments: --top_q=1; did you mean '--top_p'"),
        (["--prompts=x"], "not allowed with argument --prompt"),
        (["--out=x"], "is the file for --prompts"),
        (["--system=x"], "need --chat"),
        (["--hub=x"], "not allowed with argument --run"),
    ],
    ids=str,
)
def test_a_wrong_flag_is_one_line(flags, message):
    with pytest.raises(ConfigError) as error:
        command.parse_args(["--run=a", "--prompt=b", *flags])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_only_causal_models_continue_texts(reader):
    settings = dataclasses.replace(reader.settings, objective="masked_lm")
    masked = reader._replace(settings=settings, objective=settings.get_objective())
    with pytest.raises(ConfigError, match="needs a run of objective causal_lm, the run is of mas"):
        text_model(masked)


def test_a_run_and_its_export_write_the_same_text(finished_run, tmp_path, capsys):
    export_run(finished_run, tmp_path / "hf")
    ByteTokenizer().save(tmp_path / "hf")
    flags = ["--prompt=The ", "--max_new_tokens=6", "--temperature=0"]
    command.run([f"--run={finished_run}", *flags])
    own = capsys.readouterr().out
    command.run([f"--hub={tmp_path / 'hf'}", *flags])
    assert capsys.readouterr().out == own and own.startswith("The ")


@pytest.mark.parametrize("name", ["tokenizer", "data"])
def test_a_run_whose_files_have_changed_is_refused(finished_run, tmp_path, name):
    """A learned vocabulary of another text fits the parameters, and means other words."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["fingerprints"][name] = 64 * "0"
    (run / "run.json").write_text(json.dumps(add_hash(record)))
    readers = [lambda: evaluate([f"--run={run}", "--tasks=bits_per_byte"])]
    if name == "tokenizer":  # Without the data a run can be exported, and continue texts.
        readers += [lambda: load_run(run), lambda: export_run(run, tmp_path / "hf")]
    for read in readers:
        with pytest.raises(DataError, match=rf"with the {name} 0{{12}}, .* now give .* restore"):
            read()
    if name == "data":
        load_run(run)
