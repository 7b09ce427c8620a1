"""The map of the code, one line for each file in reading order: `python docs/map.py` writes map.md.

The line of a file is the first sentence of its docstring, so the map cannot differ from the code.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Map of the code

One line for each file, in reading order. [Reading the code](code.md) names the files to read
first, and draws a training step and a verdict. Every line here is the first sentence of its file,
and `python docs/map.py` writes this page.
"""

# (title, folder, files in reading order); the commands are in the root. Files that are not named
# here follow those of their folder.
ROOMS: list[tuple[str, str, str]] = [
    (
        "Commands",
        "",
        "train compare leaderboard generate preflight errors formatting",
    ),
    (
        "Training",
        "training",
        "runner loop callbacks step gradients optimizer state program mesh settings memory_bank "
        "text_reading metrics accounting hardware energy compile_cache mup short_run",
    ),
    (
        "Architectures",
        "arch",
        "model stack block part config pattern layer_parts sequence sharding part_cost scaling "
        "weighted_sum stack_state cross_layer canon vision layer_outputs activation_taps",
    ),
    (
        "Cost",
        "arch/cost",
        "totals",
    ),
    (
        "Mixers",
        "arch/mixers",
        "attention attention_config kv_cache mamba1 mamba2 gated_deltanet kda gdn2 "
        "delta_product gla hgrn2 lightning matrix_memory memory_cost latent_attention lstm "
        "gated_conv",
    ),
    (
        "Combined mixers",
        "arch/mixers/combined",
        "bidirectional side_by_side",
    ),
    (
        "Channels",
        "arch/channels",
        "mlp moe moe_config routing no_channel",
    ),
    (
        "Shared layers",
        "arch/layers",
        "embedding patches joint_embedding norms activations positions rope linear dropout pooler "
        "short_conv dt",
    ),
    (
        "Operations",
        "ops",
        "cross_entropy context_parallel recompute implementation",
    ),
    (
        "Attention",
        "ops/attention",
        "attention mask decay moba chunked ring kernels",
    ),
    (
        "Recurrences",
        "ops/recurrent",
        "selective_scan selective_scan_loop selective_scan_kernel selective_scan_mosaic ssd gla "
        "delta_rule delta_chunks channel_decay chunked_recurrence matrix_memory "
        "matrix_memory_chunk matrix_memory_kernel tpu_kernel causal_conv lstm",
    ),
    (
        "Experts",
        "ops/experts",
        "experts mlp dispatch ragged_all_to_all",
    ),
    (
        "Objectives",
        "objectives",
        "types causal_lm multi_token fill_in_the_middle masked_lm denoising contrastive preference "
        "infonce pooling mining mixture token_loss token_sets",
    ),
    (
        "Object stores",
        "storage",
        "remote scratch paths disk_errors hashing_file",
    ),
    (
        "Groups of documents",
        "data/groups",
        "settings documents counts shares",
    ),
    (
        "Packages",
        "data/packages",
        "wheels text_packages assemble message_catalogs",
    ),
    (
        "Data",
        "data",
        "settings splits tokenizers framing open_stores build_store fill_stores store store_index "
        "store_writer random_streams packing text_rows loader loss_weights split_overlap "
        "round_trip fetch progress",
    ),
    (
        "Sources",
        "data/sources",
        "source documents datasets text_pairs",
    ),
    (
        "Readers",
        "data/readers",
        "suffixes input_files decompression text_files json_lines arrow_files hf_datasets "
        "long_text read_policy read_stats",
    ),
    (
        "Images",
        "data/images",
        "settings records decode digits rows",
    ),
    (
        "Chats",
        "data/chats",
        "templates preferences program marked_text",
    ),
    (
        "Files of published models",
        "data/published",
        "model_files special_ids json_tokenizer hub_files",
    ),
    (
        "Preparing text",
        "data/prepare",
        "pipeline document_filter quality repetition toxicity contamination duplicates words "
        "journal output report settings",
    ),
    (
        "Settings",
        "settings",
        "types changes tree cli flag_values flag_parser command run_json descriptions renames "
        "lazy json_types json_files",
    ),
    (
        "The run folder",
        "training/run",
        "folder open_folder metrics_file seal atomic_io strict_json run_paths lock mirror "
        "remote_lock resume_check provenance settings log console trackers tracker_worker "
        "cli_errors",
    ),
    (
        "Checkpoints",
        "training/checkpoint",
        "settings manager store manifest restore initial_params param_names",
    ),
    (
        "Several processes",
        "training/distributed",
        "multihost cluster_env rendezvous peer_monitor preemption watchdog fault_injection",
    ),
    (
        "Preflight",
        "training/preflight",
        "check memory_estimate roofline topology hlo_collectives report",
    ),
    (
        "Evaluation",
        "eval",
        "task harness split_part load_run progress again generate text_generation prompts "
        "likelihood features framing length_buckets",
    ),
    (
        "Evaluation tasks",
        "eval/tasks",
        "bits_per_byte captions masked denoised retrieval preference loss_by_position "
        "multiple_choice probe image_probe similarity finetune by_group inference sample baselines",
    ),
    (
        "Baselines",
        "eval/baselines",
        "ngrams seen_text bag_of_words logistic labelled_passages",
    ),
    (
        "Fine-tuning",
        "eval/finetuning",
        "datasets labelled_files rows output_layer recipe measures",
    ),
    (
        "Adapters",
        "eval/adapters",
        "lm_harness mteb",
    ),
    (
        "Capability probes",
        "eval/capability",
        "examples recall copying tracking learning tasks",
    ),
    (
        "Studies",
        "protocol/study",
        "study declaration prior_results study_plan plan plan_record cells budget model_sizing "
        "tuning search_space tuning_lines run_study recheck step_timing time_estimate",
    ),
    (
        "Statistics",
        "protocol/statistics",
        "hypothesis_tests sample ranks sequential power verdict isoflop envelope size_means "
        "surface surface_fit scaling_law signal decision tuning_spread",
    ),
    (
        "Fits",
        "protocol/fit",
        "points point_table report describe figures",
    ),
    (
        "Coordinate checks",
        "protocol/coordinates",
        "measure figures",
    ),
    (
        "Rates over widths",
        "protocol/transfer",
        "search figures",
    ),
    (
        "Records",
        "protocol/records",
        "load run_record safe_read series seals study_record plan_file tuning_record scores "
        "run_evidence run_consistency contradictions inert_settings external_results duplicates "
        "comparability metrics fit_file run_checkpoints",
    ),
    (
        "The board",
        "protocol/board",
        "board rows groups comparisons row_verdicts baselines caveats study_cost "
        "isoflop_curves score_signal across_sizes fitted_laws columns sentences export html "
        "figures check verify",
    ),
    (
        "Published families",
        "hub",
        "run checkpoint hf_config config_limits harmless_keys family tensor_transforms "
        "name_binding safetensors_io rotary layer_types config_equivalence "
        "reference_outputs vision_outputs sentence_modules "
        "vocabulary model_card download",
    ),
    ("Supported families", "hub/families", "lookup"),
    ("Supported hybrids", "hub/families/hybrids", ""),
    ("Supported vision models", "hub/families/vision", "vision_tower"),
]


def render() -> str:
    """Returns the page."""
    return "\n".join([HEAD, *_lines()]) + "\n"


def _paths(folder: str, names: str) -> list[Path]:
    """Returns the files of a room: those in reading order, then all others of its folder."""
    listed = [f"{name}.py" for name in names.split()]
    if not folder:  # The root has configuration and no room of its own.
        return [Path(name) for name in listed]
    files = sorted(file.name for file in (ROOT / folder).glob("*.py") if file.name[:2] != "__")
    return [Path(folder) / name for name in dict.fromkeys((*listed, *files))]


def _lines() -> Iterator[str]:
    for title, folder, names in ROOMS:
        yield f"\n## {title}\n"
        for path in _paths(folder, names):
            docstring = ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8"))) or ""
            sentence = " ".join(docstring.split("\n\n")[0].split())
            yield f"- `{path.as_posix()}`: {sentence}"


if __name__ == "__main__":
    Path(__file__).with_name("map.md").write_text(render(), "utf-8")
