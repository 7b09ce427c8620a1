"""An imported model is read as its own files say; a trained one as in training."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from oracle import VOCAB, Bytes, eval_context, nats, oracle, successor

from data.framing import Framing
from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from eval.adapters.lm_harness import LmEvalModel
from eval.adapters.mteb import MtebEncoder
from eval.framing import reading
from eval.likelihood import compute_likelihoods
from eval.tasks import retrieval
from eval.text_generation import text_model
from training.text_reading import imported_reading

BOS, EOS = ByteTokenizer().specials.bos, ByteTokenizer().specials.eos
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and m.content == 'no' %}"
    "{{ raise_exception('no system') }}{% endif %}[{{ m.role }}]{{ m.content }}<|sep|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Framed(ByteTokenizer):
    """Bytes, with the frame of other files."""

    def __init__(self, **frame):
        super().__init__()
        self.framing = Framing(**frame)


def imported(ctx, **frame):
    """Returns the context as that of a model that was imported, not trained."""
    train = dataclasses.replace(ctx.settings.train, steps=0)
    data = Bytes()
    data.tokenizer = Framed(**frame)
    return ctx._replace(settings=dataclasses.replace(ctx.settings, train=train), data=data)


def requests(*arguments) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


def test_the_frame_of_files_is_that_of_imported_models_alone():
    frame = {"window": 64, "text_prefix": (), "empty_context": (EOS,), "stop_ids": (7, EOS, 7)}
    frame |= {"document_prefix": (BOS,), "document_suffix": (EOS,), "text_suffix": (EOS,)}
    ctx = imported(oracle(length=16), **frame)
    assert reading(ctx) == (64, (), (EOS,), (EOS,), (7, EOS))
    trained = ctx._replace(settings=oracle(length=16).settings)
    assert reading(trained) == (16, (BOS,), (BOS,), (EOS,), (7, EOS))
    assert imported_reading(Framing(window=64), 16, max_positions=32).window == 32
    assert imported_reading(Framing(), 16).window == 16
    assert reading(imported(oracle(length=16))).window == 2048  # lm-eval's default
    assert reading(ctx).frame(np.array([3])).tolist() == [3]
    framed = imported_reading(Framing(text_prefix=(BOS,)), 16)
    assert [framed.frame(np.array(ids)).tolist() for ids in ([3], [BOS, 3])] == [[BOS, 3]] * 2


def test_likelihoods_follow_the_frame_and_the_window():
    table, long = successor(), "0123456789" * 4
    with_bos = {"text_prefix": (BOS,), "empty_context": (BOS,), "window": 64}
    without = {"text_prefix": (), "empty_context": (EOS,), "window": 64}
    for frame, first in ((with_bos, BOS), (without, EOS)):
        ctx = imported(oracle(length=8), **frame)
        told, empty = compute_likelihoods(ctx, [(long, "xy"), ("", "ab")])
        assert told.nats == pytest.approx(nats(table, "xy", "9").sum(), rel=1e-5)
        row = table[first].astype(float)
        start = np.log(np.exp(row).sum()) - row[ord("a")]
        assert empty.nats == pytest.approx(start + nats(table, "b", "a").sum(), rel=1e-5)
    nothing = imported(oracle(length=8))
    assert compute_likelihoods(nothing, [("a", "b")])[0].n_tokens == 1
    with pytest.raises(DataError, match="needs a token before it, .* neither bos, eos nor pad"):
        compute_likelihoods(nothing, [("", "b")])


def test_no_context_is_cut_that_fits_the_own_window(caplog):
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    ctx = eval_context(tiny.model(cfg), length=8, config=cfg, batch=1)
    pair = ("a context of more than eight tokens", " and more")
    wide = imported(ctx, window=64, text_prefix=(BOS,), empty_context=(BOS,))
    (own,) = compute_likelihoods(wide, [pair])
    assert not caplog.messages
    wider = eval_context(tiny.model(cfg), length=64, config=cfg, batch=1)
    assert own.nats == pytest.approx(compute_likelihoods(wider, [pair])[0].nats, rel=1e-5)
    compute_likelihoods(ctx, [pair])
    assert "do not fit the window of 8 tokens" in caplog.text


def test_texts_end_at_every_stop_id_and_at_special_tokens():
    ctx = imported(oracle(length=64), text_prefix=(BOS,), empty_context=(BOS,), window=64)
    several = imported(oracle(length=64), text_prefix=(BOS,), window=64, stop_ids=(ord("f"), 104))
    ask = requests(("ab", {"max_gen_toks": 8}))
    assert LmEvalModel(ctx).generate_until(ask) == ["cdefghij"]
    assert LmEvalModel(several).generate_until(ask) == ["cde"]
    ids = {"text_prefix": (255,), "empty_context": (255,), "window": 64}
    model = LmEvalModel(imported(oracle(length=64), **ids))
    special = requests(
        ("", {"max_gen_toks": 6, "until": ["<|eos|>"]}), ("", {"max_gen_toks": 6, "until": ["x"]})
    )
    target = text_model(model.ctx)
    assert target.reads.empty_context == (255,)  # pad, bos, eos and so on follow the byte ff
    assert model.generate_until(special) == ["", ""]
    counts = [result.n_tokens for result in results_of(model, ["<|eos|>", "<|eos|>x", "x"])]
    assert counts == [3, 6, 6]


def results_of(model, stops):
    """Returns the continuations of a prompt that ends with the byte ff."""
    from eval.text_generation import TextRequest, continue_texts

    prompt = np.array([255], np.int32)
    batch = [TextRequest(i, prompt, 6, stops=(stop,)) for i, stop in enumerate(stops)]
    return continue_texts(text_model(model.ctx), batch, seed=0)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"max_gen_toks": 0}, ""),
        ({"max_new_tokens": 2}, "cd"),
        ({"max_tokens": 2, "max_gen_toks": 3}, "cde"),
        ({"max_completion_tokens": "1"}, "c"),
        ({"until": None, "max_gen_toks": 2}, "cd"),
    ],
    ids=str,
)
def test_the_limit_of_new_tokens_has_the_names_of_lm_eval(keys, text):
    ctx = oracle(length=64)
    assert LmEvalModel(ctx).generate_until(requests(("ab", keys))) == [text]
    with pytest.raises(ConfigError, match="has max_tokens -1, must be >= 0"):
        LmEvalModel(ctx).generate_until(requests(("ab", {"max_tokens": -1})))


def test_the_template_of_the_files_writes_the_chats_of_lm_eval(caplog):
    chat = [{"role": "user", "content": "ab "}]
    model = LmEvalModel(imported(oracle(length=64), text_prefix=(BOS,), chat_template=TEMPLATE))
    assert model.apply_chat_template(chat) == "[user]ab <|sep|>[assistant]"
    answered = [*chat, {"role": "assistant", "content": "cd "}]
    assert model.apply_chat_template(answered, False) == "[user]ab <|sep|>[assistant]cd "
    system = [{"role": "system", "content": "no"}, *chat]
    assert model.apply_chat_template(system) == "[user]ab <|sep|>[assistant]"
    assert "no system" in caplog.text and "is left out" in caplog.text
    assert model.chat_template(True) == TEMPLATE and model.chat_template(False) is None
    assert "USER: " in model.chat_template("vicuna")
    assert model.apply_chat_template(chat) == "USER: ab  ASSISTANT: "
    assert model.tokenizer_name == ByteTokenizer().fingerprint
    with pytest.raises(ConfigError, match="apply_chat_template is 'x'; use True or one of chatml"):
        model.chat_template("x")
    with pytest.raises(ConfigError, match="no template; give apply_chat_template one of chatml"):
        LmEvalModel(oracle()).apply_chat_template(chat)
    # Markers that a prompt spells are read as their ids.
    marked = requests(("[user]x<|sep|>", {"max_gen_toks": 1}))
    sep = ByteTokenizer().specials.sep
    assert LmEvalModel(imported(oracle(length=64))).generate_until(marked) == [""]
    told = model.loglikelihood(requests(("x<|sep|>", "y")))[0][0]
    row = successor()[sep].astype(float)
    assert told == pytest.approx(row[ord("y")] - np.log(np.exp(row).sum()), rel=1e-5)


def test_an_imported_encoder_embeds_texts_in_its_own_frame(monkeypatch):
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    ctx = eval_context(tiny.model(cfg), length=4, config=cfg, objective="masked_lm")
    frame = {"text_prefix": (BOS,), "text_suffix": (EOS,), "window": 32}
    read = []
    monkeypatch.setattr(
        "eval.features.bucketed_batches", lambda ctx, rows: read.extend(rows) or iter(())
    )
    retrieval.embed_texts(imported(ctx, **frame), ["abcdef", ""])
    assert [row["tokens"].tolist() for row in read] == [[BOS, *b"abcdef", EOS], [BOS, EOS]]
    read.clear()
    retrieval.embed_texts(ctx, ["abcdef", ""])
    assert [row["tokens"].tolist() for row in read] == [[*b"abcd"], [*b"ef"]]


def test_one_text_gives_one_vector_and_no_text_an_empty_array():
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    encoder = MtebEncoder(eval_context(tiny.model(cfg), length=16, config=cfg))
    one, many = encoder.encode("abc"), encoder.encode(["abc", "de"])
    assert one.shape == (cfg.width,) and many.shape == (2, cfg.width)
    np.testing.assert_array_equal(one, many[0])
    for nothing in ([], iter(()), [{"text": []}]):
        assert encoder.encode(nothing).shape == (0, cfg.width)
    batches = [{"text": ["abc"]}, {"text": ["de"]}]
    np.testing.assert_array_equal(encoder.encode(batches), many)


def test_a_chat_names_its_template_and_stops_at_its_marker(monkeypatch, capsys, tmp_path):
    import generate as command

    ctx = imported(oracle(length=64), text_prefix=(BOS,), chat_template=TEMPLATE)
    monkeypatch.setattr(command, "load_run", lambda path, step: (ctx, None, 0))
    command.run(["--run=here", "--chat", "--prompt=x", "--temperature=0", "--max_new_tokens=2"])
    out, said = capsys.readouterr()
    assert out == "^_\n"  # the oracle continues "]"
    sep = ByteTokenizer().specials.sep
    assert "chats: template that of the tokenizer's files" in said
    assert f'a turn ends with "<|sep|>", the special token {sep}' in said
    args = command.parse_args(["--run=here", "--chat"])
    assert sep in command.load_target(args)[0].reads.stop_ids
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "y"}]}) + "\n")
    flags = ["--run=here", "--chat", "--temperature=0", "--max_new_tokens=1"]
    command.run([*flags, f"--prompts={prompts}"])
    assert json.loads(capsys.readouterr().out)["text"] == "^"
