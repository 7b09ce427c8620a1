"""Keys of config.json that change nothing: whatever their value, or at the values named here.

A key that a family does not read is harmless if it is null, listed in `IGNORED_KEYS`, or has one of
the values below. Everything else is refused by name, because it may change the function.
"""

from settings.json_types import JsonObject

# Keys about training, generation, bookkeeping, or other ways to compute the same numbers.
_IGNORED_KEYS = """_name_or_path _attn_implementation _commit_hash architectures auto_map model_type
    transformers_version dtype torch_dtype torchscript use_bfloat16 use_cache return_dict
    return_dict_in_generate output_attentions output_hidden_states output_scores
    output_router_logits output_past initializer_range initializer_factor init_std
    initializer_cutoff_factor gradient_checkpointing id2label label2id num_labels problem_type
    finetuning_task task_specific_params tokenizer_class prefix bos_token_id eos_token_id
    pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    remove_invalid_values attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout
    hidden_dropout_prob attention_probs_dropout_prob dropout dropout_rate activation_dropout
    layerdrop classifier_dropout classifier_dropout_prob summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj summary_hidden_dropout tf_legacy_loss
    pretraining_tp slow_but_exact chunk_size_feed_forward tokenizer_model_max_length
    _num_labels n_ctx vocab_file language model_max_length
    _attn_implementation_autoset _attn_implementation_internal attn_implementation
    _flash_attn_2_enabled _experts_implementation use_flash_attn use_flash_attention flash_attn
    use_flash_attention_2 unsloth_version unsloth_fixed unsloth_tie_weights_with_padded_vocab
    transformers.js_config sentence_transformers model_name max_sequence_length
    xla_device use_return_dict cache_implementation num_logits_to_keep predict_special_tokens
    use_mamba_kernels use_mambapy fuse_cross_entropy fuse_norm return_token_type_ids
    encoder_layerdrop decoder_layerdrop freeze_embeddings neftune_noise_alpha is_training
    loss_type default_theta tokenizer_type model_parallel ds_config use_liger_kernel
    torch_compile benchmark layer_norm_fp32 pad_vocab_size_multiple rescale_prenorm_residual
    fused_add_norm router_aux_loss_coef output_router_scores dpo_alpha
    keys_to_ignore_at_inference"""
IGNORED_KEYS = frozenset(_IGNORED_KEYS.split())
# Keys of the base class, which are harmless only with these values.
MUST_BE_OFF: JsonObject = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "tie_encoder_decoder": False,
    "sparse_attention": None,
}
# Options of some models at the value at which a family that does not read them has no such option.
HARMLESS_VALUES: dict[str, tuple[object, ...]] = {
    "adapters": ({}, []),
    "attention_bias": (False,),
    "attention_multiplier": (1.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_multiplier": (1.0,),
    "final_logit_softcapping": (0.0,),
    "is_llama_config": (True,),
    "layer_norm_elementwise_affine": (True,),
    "logits_scaling": (1.0,),
    "mlp_bias": (False,),
    "no_rope_layers": ([],),
    "qk_layernorm": (False,),
    "qkv_bias": (False,),
    "residual_multiplier": (1.0,),
    "residual_in_fp32": (True, False),  # float32 is the dtype of this stream anyway
    "rope_interleaved": (False,),
    "router_jitter_noise": (0.0,),
    "ssm_cfg": ({},),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}
# Options of one family, whose published files have them at these values alone.
FAMILY_VALUES: dict[str, dict[str, tuple[object, ...]]] = {
    "bert": {
        "cell": ({},),
        "directionality": ("bidi",),
        "pooler_type": ("first_token_transform",),
    },
    "bloom": {"multi_query": (False,)},
    "falcon": {"apply_residual_connection_post_layernorm": (False,)},
    "jamba": {"mamba_inner_layernorms": (True,)},
    "qwen2_moe": {"qkv_bias": (True,)},
}
# Keys that the class of one family ignores, whatever their value.
FAMILY_IGNORED: dict[str, frozenset[str]] = {
    "bert": frozenset(
        [
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
        ]
    ),
    "jamba": frozenset(["calc_logits_for_entire_prompt"]),
    "mamba": frozenset(["use_falcon_mambapy"]),
    "mamba2": frozenset(["time_step_rank"]),
}


def is_harmless(model_type: str, name: str, value: object) -> bool:
    """Returns whether a key that the family `model_type` does not read changes nothing."""
    if value is None or name in IGNORED_KEYS or name in FAMILY_IGNORED.get(model_type, ()):
        return True
    harmless_values = (
        *HARMLESS_VALUES.get(name, ()),
        *FAMILY_VALUES.get(model_type, {}).get(name, ()),
    )
    return any(
        value == allowed and type(value) is type(allowed) for allowed in harmless_values
    ) or any(
        _is_number(value) and _is_number(allowed) and value == allowed
        for allowed in harmless_values
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
