# %% [markdown]
# # A pretrained model: import, evaluate, fine-tune, export
#
# A folder of Hugging Face (`config.json`, safetensors, `tokenizer.json`) becomes a run of the
# project, is judged on text that it has not seen, trained further, and written as such a folder
# again. Only safetensors are read, and no code of a repository is run. `docs/families.md` lists
# the 23 families that are understood, and how each was checked.
#
# **To stop and go on.** Interrupt a cell that trains: it finishes its step and saves. Run it
# again: it goes on from there, to the same bits. In Colab, mount Drive (the folder icon, *Mount
# Drive*) before the first cell, and the runs are on it: after a disconnect, run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with a tiny model that
# it makes itself. Nobody has yet run it in Colab or on a TPU, or with the repository that it
# names, which needs a network.

# %%
# Finds isoflop. In Colab: clones it, and installs what it lacks beside the jax that is there.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = ""  # for Colab: what `git clone` takes to get your copy of isoflop
COLAB, DRIVE = "google.colab" in sys.modules, Path("/content/drive/MyDrive")
root = Path("/content/isoflop") if COLAB else Path.cwd()
if COLAB and not root.is_dir():
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, root], check=True)
os.chdir(next(p for p in (root, *root.parents) if (p / "leaderboard.py").is_file()))
sys.path.insert(0, os.getcwd())
RUNS = DRIVE / "isoflop" if DRIVE.is_dir() else Path("runs/notebooks")
if COLAB:
    here = {name: version(name) for name in ("jax", "jaxlib", "numpy")}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable"]
    if subprocess.run([*pip, ".", *(f"{n}=={v}" for n, v in here.items())]).returncode:
        tpu = importlib.util.find_spec("libtpu")  # what is here is too old or too new
        subprocess.run([*pip, ".[tpu]" if tpu else "."], check=True)
    if {name: version(name) for name in here} != here:
        raise RuntimeError("jax was replaced: restart the session, then run this cell again")

# %% tags=["parameters"]
import jax

FAST = jax.default_backend() == "cpu"  # minutes on two cores, without a network
STEPS, ROWS, LENGTH = (30, 8, 128) if FAST else (300, 16, 512)
WORKDIR = RUNS / f"pretrained-{STEPS}"
SOURCE = str(WORKDIR / "made_here") if FAST else "HuggingFaceTB/SmolLM2-135M"

# %% [markdown]
# ## A folder
#
# `SOURCE` is a folder or the `owner/name` of a repository. If `FAST`, it is a small random model
# of the LLaMA family that is made here, so that the path is the same and no network is needed.

# %%
from pathlib import Path

import hub
from arch import Model, ModelConfig
from data import DataConfig, open_data

if FAST and not Path(SOURCE, "config.json").is_file():
    tokenizer = open_data(DataConfig(tokenizer="bpe:1024")).tokenizer
    config = ModelConfig(width=64, depth=2, vocab=tokenizer.vocab)
    model = Model(config, key=jax.random.key(0))
    hub.save(model, config, SOURCE, tokenizer=tokenizer)
    print(*sorted(path.name for path in Path(SOURCE).iterdir()))

# %% [markdown]
# ## Import
#
# The same as `python -m hub import SOURCE --workdir=RUN`. What config.json says and the project
# does not do is refused by its name.

# %%
from hub import __main__ as hub_command

imported, tuned, exported = WORKDIR / "imported", WORKDIR / "tuned", WORKDIR / "exported"
if not (imported / "run.json").is_file():
    hub_command.run(["import", SOURCE, f"--workdir={imported}"])

# %% [markdown]
# ## Evaluate
#
# Bits per byte do not depend on the tokenizer, so that models of different makers can be
# compared. The same as `python -m eval --run=RUN --tasks=bits_per_byte`.

# %%
from eval import __main__ as eval_command

eval_command.run([f"--run={imported}", "--tasks=bits_per_byte"])

# %% [markdown]
# ## Fine-tune
#
# The settings are those of the import, the parameters are its checkpoint. The same as `train.py`
# with these flags. The text is the embedded corpus: the Bible, Shakespeare, speeches.

# %%
import train

train.run(
    [
        f"--config={imported / 'run.json'}",
        f"--init_from={imported}",
        f"--workdir={tuned}",
        f"--config.train.steps={STEPS}",
        f"--config.train.batch={ROWS}",
        f"--config.train.length={LENGTH}",
        f"--config.optimizer.learning_rate={5e-3 if FAST else 1e-4}",
        f"--config.optimizer.warmup={STEPS // 10}",
        f"--config.log.every={max(STEPS // 10, 1)}",
        "--config.log.console=plain",
        "--config.eval.tasks=('bits_per_byte',)",
    ]
)

# %%
import matplotlib.pyplot as plt

from protocol.conduct import score
from training.run import read_metrics

rows = [row for row in read_metrics(tuned / "metrics.jsonl") if "bits_per_byte" in row]
plt.plot([row["step"] for row in rows], [row["bits_per_byte"] for row in rows], label="training")
for label, run, step, style in (("before", imported, 0, "--"), ("after", tuned, STEPS, "-")):
    held_out = score(run, step, "test/bits_per_byte")
    plt.axhline(held_out, color="grey", linestyle=style, label=f"test, {label}: {held_out:.2f}")
plt.xlabel("step")
plt.ylabel("bits per byte")
plt.legend()
plt.show()

# %% [markdown]
# ## Export
#
# The same as `python -m hub export RUN FOLDER`. Hugging Face's libraries read the folder; here it
# is read back, and its parameters are those that were trained.

# %%
import numpy as np

from eval.subject import from_run

if not (exported / "config.json").is_file():
    hub_command.run(["export", str(tuned), str(exported)])
again, _, _ = hub.load(exported)
pairs = zip(jax.tree.leaves(again), jax.tree.leaves(from_run(tuned)[0].learner.model), strict=True)
print("the same parameters:", all(np.array_equal(a, b) for a, b in pairs))

# %% [markdown]
# ## The board
#
# Two runs that are not alike, in cost and in rows: nothing is ranked, and nothing claimed.

# %%
from protocol import render
from protocol.board import board
from protocol.collect import collect

_ = render.write(board(*collect([imported, tuned])), WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
