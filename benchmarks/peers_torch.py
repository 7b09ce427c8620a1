"""The torch side of benchmarks/peers.py: trains one case with Hugging Face's model classes."""

import json
import math
import os
import sys
import time

import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

DEPTH, VOCAB, HEAD_DIM = 6, 8192, 64
PEAK_SIZE = 2048


def round_up(width: float) -> int:
    """Returns the next multiple of 32, as in `peers_isoflop.py`."""
    return math.ceil(width / 32) * 32


def make_model(name: str, width: int) -> torch.nn.Module:
    """Returns the model of a case with random weights."""
    common = {
        "hidden_size": width,
        "num_hidden_layers": DEPTH,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
        "use_cache": False,
    }
    heads = width // HEAD_DIM
    attention = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
    }
    if name == "dense":
        return LlamaForCausalLM(
            LlamaConfig(intermediate_size=round_up(width * 8 / 3), **attention, **common)
        )
    if name == "moe":
        return MixtralForCausalLM(
            MixtralConfig(
                intermediate_size=round_up(width * 4 / 3),
                num_local_experts=8,
                num_experts_per_tok=2,
                sliding_window=None,
                **attention,
                **common,
            )
        )
    if name == "mamba1":
        return MambaForCausalLM(MambaConfig(state_size=16, **common))
    return Mamba2ForCausalLM(
        Mamba2Config(
            num_heads=2 * width // HEAD_DIM,
            head_dim=HEAD_DIM,
            state_size=64,
            n_groups=1,
            expand=2,
            chunk_size=64,
            **common,
        )
    )


def main() -> None:
    """Makes the model, then answers each request with its figure."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = make_model(case["model"], case["width"]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    tokens = torch.randint(0, VOCAB, (case["batch_size"], case["seq_len"]))
    is_bfloat16 = case["dtype"] == "bfloat16"
    matrix = torch.ones(PEAK_SIZE, PEAK_SIZE, dtype=getattr(torch, case["dtype"]))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip() == "step":
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
                loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            value = time.perf_counter() - start
        else:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                matrix @ matrix
                times.append(time.perf_counter() - start)
            value = 2 * PEAK_SIZE**3 / min(times)
        print(json.dumps({"value": value}), flush=True)


if __name__ == "__main__":
    main()
