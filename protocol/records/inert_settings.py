"""Settings that nothing reads: two runs that differ in them alone are the same candidate.

The tables state which part, optimizer, schedule or objective reads a setting. They are data, so
that a board needs neither jax nor the code of the run. A test compares them with the code.
"""

from collections.abc import Mapping

from protocol.records.safe_read import CheckedFields

# Sections of `model` that a layer reads by naming the part.
PART_SECTIONS = (
    *("attention", "local_attention", "side_by_side", "mamba1", "mamba2", "gated_deltanet", "lstm"),
    *("kda", "gdn2", "delta_product", "gla", "hgrn2", "lightning"),
    *("latent_attention", "gated_conv", "mlp", "moe"),
)
ENCODER_SECTIONS = ("encoder", "cross_attention")  # Read where `model.encoder.depth` is not 0.
COMPUTE_ONLY_SETTINGS = ("scan", "remat")  # They change how a result is computed, not the result.
OBJECTIVE_SECTIONS = (
    *("causal_lm", "masked_lm", "denoising", "contrastive", "preference", "mixture"),
)
# Settings of the optimizer that are read for some values of another one: (name of that one, values
# for which they are read).
OPTIMIZER_READERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "adam_lr_ratio": ("name", ("muon",)),
    "newton_schulz_steps": ("name", ("muon",)),
    "eps": ("name", ("adamw", "muon")),
    "beta2": ("name", ("adamw", "muon", "lion")),
    "cooldown_fraction": ("schedule", ("wsd",)),
    "final_lr_ratio": ("schedule", ("cosine", "wsd")),
    "max_skips": ("on_nonfinite", ("skip",)),
    "max_rollbacks": ("on_nonfinite", ("rollback",)),
}


def drop_inert(settings: CheckedFields) -> dict[str, object]:
    """Returns the tree of settings without those that nothing reads."""
    tree = dict(settings.tree)
    objective = settings.text("objective")
    if objective != "mixture":
        for name in OBJECTIVE_SECTIONS:
            if name != objective:
                tree.pop(name, None)
    if "model" in tree:
        tree["model"] = _drop_from_model(settings.section("model"))
    if "optimizer" in tree:
        tree["optimizer"] = _drop_from_optimizer(settings.section("optimizer"))
    if (train := settings.section("train")).count("unique_tokens") == 0:
        tree["train"] = {k: v for k, v in train.tree.items() if k != "unique_tokens"}
    return tree


def _drop_from_model(model: CheckedFields) -> dict[str, object]:
    encoder = model.section("encoder")
    layers = [*model.texts("first_layers"), *model.texts("layers")]
    if has_encoder := bool(encoder.count("depth")):
        layers += [*encoder.texts("first_layers"), *encoder.texts("layers")]
    vision = model.section("vision")
    if has_vision := bool(vision.count("depth")):
        layers += [*vision.texts("first_layers"), *vision.texts("layers")]
        layers += ["attention+mlp"] if vision.text("pooling") == "attention" else []
    halves = [half for layer in layers for half in layer.split("+")]
    parts = {part.strip().partition("@")[0] for half in halves for part in half.split("&")}
    parts |= {"side_by_side"} if any("&" in half for half in halves) else set()
    unread = {name for name in PART_SECTIONS if name not in parts}
    if not has_encoder:
        unread |= {*ENCODER_SECTIONS}
    unread |= set() if has_vision else {"vision"}
    # Layers of another notation name no known part; then nothing is dropped.
    if parts.isdisjoint(PART_SECTIONS):
        unread -= {*PART_SECTIONS}
    unread |= {*COMPUTE_ONLY_SETTINGS}
    unread |= set() if model.tree.get("parametrization") == "mup" else {"base_width"}
    return {key: value for key, value in model.tree.items() if key not in unread}


def _drop_from_optimizer(optimizer: CheckedFields) -> dict[str, object]:
    tree = dict(optimizer.tree)
    for name, (selector, values) in OPTIMIZER_READERS.items():
        if selector in tree and optimizer.text(selector) not in values:
            tree.pop(name, None)
    if not optimizer.nonnegative("spike_sigma"):
        tree.pop("spike_window", None)
    return tree
