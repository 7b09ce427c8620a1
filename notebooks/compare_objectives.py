# %% [markdown]
# # One backbone, every objective
#
# The same Transformer is trained under four objectives, with the same training FLOPs: it predicts
# the next token, fills in masked tokens, reconstructs removed text, or finds which texts belong
# together. The losses of these objectives cannot be compared. Probes can: a probe is a logistic
# regression that predicts a label of a held-out passage from the model's frozen features.
#
# **To interrupt and resume.** Interrupt a cell that trains: it finishes its step and saves a
# checkpoint. Run the cell again: it resumes, with the same bits. In Colab, mount Drive (the folder
# icon, *Mount Drive*) before the first cell. The runs are then stored on Drive, and after a
# disconnect you run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with fewer steps.
# It has not been run in Colab or on a TPU yet.

# %%
# Finds the project's folder. In Colab, clones it and installs its packages beside Colab's jax.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = ""  # for Colab: the address of your copy of isoflop, as `git clone` takes it
COLAB, DRIVE = "google.colab" in sys.modules, Path("/content/drive/MyDrive")
root = Path("/content/isoflop") if COLAB else Path.cwd()
if COLAB and not root.is_dir():
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, root], check=True)
os.chdir(next(p for p in (root, *root.parents) if (p / "leaderboard.py").is_file()))
sys.path.insert(0, os.getcwd())
RUNS = DRIVE / "isoflop" if DRIVE.is_dir() else Path("runs/notebooks")
if COLAB:
    versions = {name: version(name) for name in ("jax", "jaxlib", "numpy")}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable"]
    if subprocess.run([*pip, ".", *(f"{n}=={v}" for n, v in versions.items())]).returncode:
        tpu = importlib.util.find_spec("libtpu")  # Colab's jax is too old or too new
        subprocess.run([*pip, ".[tpu]" if tpu else "."], check=True)
    if {name: version(name) for name in versions} != versions:
        raise RuntimeError("jax was replaced: restart the session, then run this cell again")

# %% tags=["parameters"]
import jax

FAST = jax.default_backend() == "cpu"  # a few minutes on two cores
STEPS, LABELS = (60, ("source", "genre")) if FAST else (2000, ("source", "genre", "era", "book"))
STRIDE = 8 if FAST else 1  # one in STRIDE blocks of passages is probed
WORKDIR = RUNS / f"compare_objectives-{STEPS}"

# %% [markdown]
# ## The candidates
#
# The candidates are one model that differs in the objective alone. The contrastive objective reads
# text pairs, two translations of a verse; the others read the same packed text.

# %%
from data.open_stores import open_data
from eval import harness
from objectives import OBJECTIVES
from settings.cli import freeze
from training.settings import Settings, defaults, resolve


def make_settings(objective):
    c = defaults()
    c.objective = objective
    c.data.tokenizer = "bpe:1024"
    c.model.width, c.model.depth = 64, 2
    c.model.attention.heads = 2
    c.train.batch_size, c.train.seq_len, c.train.steps = 8, 128, STEPS
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, STEPS // 10
    c.optimizer.schedule, c.optimizer.cooldown_fraction = "wsd", 0.4
    c.optimizer.final_lr_ratio = 0.0
    c.eval.tasks, c.eval.splits = harness.DEFAULT_TASKS[objective][:1], ("test",)
    c.train.compile_cache = str(WORKDIR / "compiled")
    c.log.every, c.log.console = max(STEPS // 5, 1), "off" if FAST else "plain"
    settings = freeze(Settings, c)
    tokenizer = open_data(settings.data, settings.store_kinds).tokenizer
    return resolve(settings, tokenizer.vocab_size)


candidates = {name: make_settings(name) for name in OBJECTIVES}

# %% [markdown]
# ## The same cost
#
# A token costs less if fewer positions are scored: masked language modeling computes logits for the
# masked tokens alone. The number of steps is therefore solved for equal training FLOPs. Costs that
# then differ are printed as ratios to the reference.

# %%
from protocol.study.budget import match_by_steps

matched = match_by_steps(candidates, "training_flops", reference="causal_lm", tolerance=0.05)
for match in matched:
    ratios = ", ".join(f"{k} {v:.2f}x" for k, v in match.cost_ratios.items() if abs(v - 1) > 0.01)
    steps = match.settings.train.steps
    print(f"{match.name}: {steps} steps, residual {match.residual:+.2%}; {ratios}")

# %% [markdown]
# ## Training
#
# `train.py --config.objective=NAME --workdir=...` calls the same function.

# %%
from training import runner

for match in matched:
    print(f"## {match.name}")
    runner.train(match.settings, WORKDIR / match.name, harness.make_evaluators)

# %% [markdown]
# ## Frozen probes
#
# Held-out works are divided into passages of 256 bytes. The features of a passage are means over
# its tokens, one mean for each layer. A logistic regression predicts from them where the passage
# comes from: its source (the Bible, a play, a speech) or its genre. The layer and the penalty are
# selected on one part of the passages, and the accuracy is measured on another part.
#
# There are three baselines: the same architecture untrained, a bag of words, and the most common
# label. A trained model has learned something useful only if it is better than all three. After the
# few steps of `FAST` no model is, and with so few passages an accuracy is reliable to about .05.
# `python -m eval --run=RUN --tasks=probe` evaluates all labels and records the scores in the run
# folder.

# %%
from eval.baselines.bag_of_words import bag_of_words
from eval.baselines.labelled_passages import PASSAGES_PER_BLOCK, load_passages
from eval.features import pooled_features, with_random_init
from eval.load_run import load_run
from eval.tasks.probe import BASELINE_WORDS, fit_probe, majority_accuracy, make_probe_dataset

passages = [
    passage
    for i, passage in enumerate(load_passages(("test",)))
    if i // PASSAGES_PER_BLOCK % STRIDE == 0
]
texts = [passage.text for passage in passages]
contexts = {name: load_run(WORKDIR / name)[0] for name in OBJECTIVES}
features = {name: pooled_features(ctx, texts) for name, ctx in contexts.items()}
features["untrained"] = pooled_features(with_random_init(contexts["masked_lm"]), texts)

accuracies = {}
for label in LABELS:
    indices, dataset = make_probe_dataset(label, passages)
    train, test = dataset.split_indices["train"], dataset.split_indices["test"]
    bag = bag_of_words([texts[i] for i in indices], train, BASELINE_WORDS)
    inputs = {name: x[indices] for name, x in features.items()} | {"bag of words": bag[:, None]}
    accuracies[label] = {name: fit_probe(x, dataset).accuracy for name, x in inputs.items()}
    accuracies[label]["most common label"] = majority_accuracy(dataset)
    print(f"{label}: {dataset.n_classes} classes, {len(test)} passages in the test part")
    for name, accuracy in accuracies[label].items():
        print(f"  {name:18}{accuracy:.3f}")

# %%
import matplotlib.pyplot as plt

figure, panels = plt.subplots(
    1, len(LABELS), figsize=(4 * len(LABELS), 3), sharey=True, layout="constrained"
)
objective_colors = {name: f"C{i}" for i, name in enumerate(OBJECTIVES)}
for axes, (label, by_name) in zip(panels, accuracies.items(), strict=True):
    colors = [objective_colors.get(name, "lightgrey") for name in by_name]
    bars = axes.barh([*by_name], [*by_name.values()], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(title=label, xlim=(0, 1.15), xlabel="accuracy of the probe")
panels[0].invert_yaxis()
plt.show()

# %% [markdown]
# ## The board
#
# Each objective has a group of its own. Losses of different objectives are not comparable, so the
# board does not rank them together.

# %%
from protocol.board.board import make_board
from protocol.board.export import write_board
from protocol.records.load import load_records

board = make_board(*load_records([WORKDIR / name for name in OBJECTIVES]))
_ = write_board(board, WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
