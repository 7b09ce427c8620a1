"""Reads exported folders with transformers; run by peers' Python.

    python published_reader.py REQUESTS.json ANSWERS.json

A request has a folder, a kind (an auto class, or "chat") and ids, or the messages of a chat.
"""

import json
import sys
from pathlib import Path

import torch
import transformers as hf

NEW_TOKENS = 8
OUTPUTS = {
    "AutoModelForMaskedLM": "logits",
    "AutoModel": "last_hidden_state",
    "AutoModelForSeq2SeqLM": "logits",
}


def read(request: dict) -> dict:
    """Returns what the class of an export computes."""
    kind = getattr(hf, request["kind"])
    options = {"dtype": torch.float32, "output_loading_info": True}
    model, info = kind.from_pretrained(request["folder"], **options)
    inputs = {name: torch.tensor(ids) for name, ids in request["inputs"].items()}
    output = model.eval()(**inputs)[OUTPUTS[request["kind"]]]
    # The classes always have a pooler, which a bare encoder may lack.
    missing = [n for n in info["missing_keys"] if "pooler" not in n]
    answer = {
        "class": type(model).__name__,
        "output": output.tolist(),
        "unread": sorted([*missing, *info["unexpected_keys"], *info["mismatched_keys"]]),
    }
    if request["kind"] == "AutoModelForSeq2SeqLM":
        answer["greedy"] = model.generate(
            input_ids=inputs["input_ids"], max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=-1,
        ).tolist()  # fmt: skip
    if request["text"]:
        tokenizer = hf.AutoTokenizer.from_pretrained(request["folder"])
        answer["ids"] = tokenizer(request["text"]).input_ids
    return answer


def reply(request: dict) -> dict:
    """Returns the greedy reply to a chat, as far as the export says where it ends."""
    tokenizer = hf.AutoTokenizer.from_pretrained(request["folder"])
    model = hf.AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        request["messages"], add_generation_prompt=True, return_dict=False
    )
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    return {
        "prompt": prompt,
        "ids": ids[0, len(prompt) :].tolist(),
        "stops": model.generation_config.eos_token_id,
        "eos": tokenizer.eos_token,
    }


@torch.no_grad()
def main() -> None:
    """Writes the answers to the requests."""
    requests = json.loads(Path(sys.argv[1]).read_text())
    answers = [reply(r) if r["kind"] == "chat" else read(r) for r in requests]
    Path(sys.argv[2]).write_text(json.dumps(answers))


main()
