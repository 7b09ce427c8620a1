"""Writes a tiny SigLIP and its outputs in float64: `python siglip_model.py FOLDER`."""

import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file

folder = Path(sys.argv[1])
shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
config = hf.SiglipConfig(
    text_config={**shared, "hidden_size": 16, "vocab_size": 30, "max_position_embeddings": 9},
    vision_config={**shared, "hidden_size": 12, "image_size": 12, "patch_size": 4},
)
config._attn_implementation = "sdpa"  # The other one rounds its softmax to float32.
torch.manual_seed(0)
model = hf.SiglipModel(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
model = model.double()
save_file(
    {n: t.float().contiguous() for n, t in model.state_dict().items()}, folder / "model.safetensors"
)
ids, pixels = torch.randint(0, 30, (3, 9)), torch.randn(3, 3, 12, 12, dtype=torch.float64)
with torch.no_grad():
    image, text = model.vision_model(pixel_values=pixels), model.text_model(input_ids=ids)
outputs = {
    "ids": ids,
    "pixels": pixels,
    "image_hidden": image.last_hidden_state,
    "image_pooled": image.pooler_output,
    "text_hidden": text.last_hidden_state,
}
save_file({name: value.contiguous() for name, value in outputs.items()}, folder / "outputs.st")
