# %% [markdown]
# # A pretrained model: import, evaluate, fine-tune, export
#
# This notebook imports a Hugging Face folder (`config.json`, safetensors, `tokenizer.json`) as a
# run of the project, evaluates it on held-out text, trains it further, and exports it as such a
# folder again. Only safetensors are read, and no code of a repository is executed.
# `docs/families.md` lists the supported families and how each of them was checked.
#
# **To interrupt and resume.** Interrupt a cell that trains: it finishes its step and saves a
# checkpoint. Run the cell again: it resumes, with the same bits. In Colab, mount Drive (the folder
# icon, *Mount Drive*) before the first cell. The runs are then stored on Drive, and after a
# disconnect you run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with a tiny random
# model. It has not been run in Colab or on a TPU yet. The repository that `SOURCE` names needs a
# network, and no run with it has been made yet.

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

FAST = jax.default_backend() == "cpu"  # a few minutes on two cores, without a network
STEPS, BATCH_SIZE, SEQ_LEN = (30, 8, 128) if FAST else (300, 16, 512)
WORKDIR = RUNS / f"pretrained-{STEPS}"
SOURCE = str(WORKDIR / "random_llama") if FAST else "HuggingFaceTB/SmolLM2-135M"

# %% [markdown]
# ## A folder
#
# `SOURCE` is a folder or the `owner/name` of a repository. With `FAST` it is a small random model
# of the LLaMA family, which the next cell makes. The steps are then the same and need no network.

# %%
import hub
from arch import Model, ModelConfig
from data.open_stores import open_data
from data.settings import DataConfig

if FAST and not Path(SOURCE, "config.json").is_file():
    tokenizer = open_data(DataConfig(tokenizer="bpe:1024")).tokenizer
    config = ModelConfig(width=64, depth=2, vocab_size=tokenizer.vocab_size)
    model = Model(config, key=jax.random.key(0))
    hub.save(model, config, SOURCE, tokenizer=tokenizer)
    print(*sorted(path.name for path in Path(SOURCE).iterdir()))

# %% [markdown]
# ## Import
#
# This cell does the same as `python -m hub import SOURCE --workdir=RUN`. An option of config.json
# that the project does not implement is refused by its name.

# %%
from hub import __main__ as hub_command

imported_run, tuned_run = WORKDIR / "imported", WORKDIR / "tuned"
if not (imported_run / "run.json").is_file():
    hub_command.run(["import", SOURCE, f"--workdir={imported_run}"])

# %% [markdown]
# ## Evaluate
#
# Bits per byte do not depend on the tokenizer, so models with different tokenizers can be compared.
# This cell does the same as `python -m eval --run=RUN --tasks=bits_per_byte`.

# %%
from eval import __main__ as eval_command

eval_command.run([f"--run={imported_run}", "--tasks=bits_per_byte"])

# %% [markdown]
# ## Fine-tune
#
# The settings are those of the imported run, and the initial parameters are its checkpoint. The
# cell does the same as `train.py` with these flags. The text is the embedded corpus: the Bible,
# Shakespeare, speeches.

# %%
import train

train.run(
    [
        f"--config={imported_run / 'run.json'}",
        f"--init_from={imported_run}",
        f"--workdir={tuned_run}",
        f"--config.train.steps={STEPS}",
        f"--config.train.batch_size={BATCH_SIZE}",
        f"--config.train.seq_len={SEQ_LEN}",
        f"--config.optimizer.learning_rate={5e-3 if FAST else 1e-4}",
        f"--config.optimizer.warmup={STEPS // 10}",
        f"--config.log.every={max(STEPS // 10, 1)}",
        "--config.log.console=plain",
        "--config.eval.tasks=('bits_per_byte',)",
        "--config.eval.limit=0",  # whole splits, as for the imported model
    ]
)

# %%
import matplotlib.pyplot as plt

from protocol.study.run_study import read_score
from training.run.folder import read_metrics

rows = [row for row in read_metrics(tuned_run / "metrics.jsonl") if "bits_per_byte" in row]
plt.plot([row["step"] for row in rows], [row["bits_per_byte"] for row in rows], label="training")
for label, run, step, style in (
    ("before", imported_run, 0, "--"),
    ("after", tuned_run, STEPS, "-"),
):
    score = read_score(run, step, "test/bits_per_byte")
    plt.axhline(score, color="grey", linestyle=style, label=f"test, {label}: {score:.2f}")
plt.xlabel("step")
plt.ylabel("bits per byte")
plt.legend()
plt.show()

# %% [markdown]
# ## Export
#
# This cell does the same as `python -m hub export RUN FOLDER`. Hugging Face's libraries can read
# the folder. Here it is read back, and the parameters are compared with the trained ones.

# %%
import numpy as np

from eval.load_run import load_run

export_folder = WORKDIR / "exported"
if not (export_folder / "config.json").is_file():
    hub_command.run(["export", str(tuned_run), str(export_folder)])
exported_model, _, _ = hub.load(export_folder)
trained_model = load_run(tuned_run)[0].trainable.model
pairs = zip(jax.tree.leaves(exported_model), jax.tree.leaves(trained_model), strict=True)
print("the same parameters:", all(np.array_equal(a, b) for a, b in pairs))

# %% [markdown]
# ## The board
#
# The two runs differ in cost and in row length. The board shows them, but it ranks nothing and
# claims nothing.

# %%
from protocol.board.board import make_board
from protocol.board.export import write_board
from protocol.records.load import load_records

board = make_board(*load_records([imported_run, tuned_run]))
_ = write_board(board, WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
