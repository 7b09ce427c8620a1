# %% [markdown]
# # Add a mixer
#
# A mixer lets tokens exchange information. This notebook defines a new mixer in a cell, tests it
# against the contracts of all mixers of the project, trains it beside attention at the same cost,
# and shows its row on the board.
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
STEPS, SEEDS = 30 if FAST else 600, (0, 1, 2)
WORKDIR = RUNS / f"add_a_mixer-{STEPS}"

# %% [markdown]
# ## The mixer
#
# The mixer is a moving average: $h_t = a \odot h_{t-1} + u_t$. The decay $a$ of each channel is
# learned, and $h = 0$ where a document begins. This is the plain form of the averages of Mega
# (arXiv:2209.10655). It is linear in $h$, so an associative scan computes all steps at once.
#
# Besides the computation, a mixer defines three things: its state (what decoding stores for a row),
# the sizes that a mesh divides, and its cost.

# %%
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.layers.linear import linear
from arch.part_cost import PartCost, TermFlops
from arch.sequence import CAUSAL_ONLY
from arch.sharding import P, make_matrix, make_vector


class AverageState(NamedTuple):
    """The state that decoding continues from."""

    h: Float[Array, "B D"]
    last_segment: Int[Array, " B"]  # segment id of the last token


class Average(nnx.Module):
    """A mixer: h[t] = a h[t-1] + u[t], y = w_out h."""

    supported_views = staticmethod(lambda cfg: CAUSAL_ONLY)  # the backbone can run it both ways

    def __init__(self, D, cfg, *, key, scale=1.0):
        keys = jax.random.split(key)
        self.w_in = make_matrix(keys[0], (D, D), P("data", "model"))
        self.decay = make_vector(D, 1.0)  # the initial decay is a = sigmoid(1) = 0.73
        self.w_out = make_matrix(keys[1], (D, D), P("model", "data"), scale)

    def __call__(self, x, seq, *, state=None, memory=None, key=None):
        """Returns the mixed tokens, and the state after the last one if a state was given."""
        start = self.init_state(x.shape[0], 0, x.dtype) if state is None else state
        u = linear(x, self.w_in[...]).astype(start.h.dtype)
        resets = seq.resets(start.last_segment)
        a = jnp.where(resets[..., None], 0, jax.nn.sigmoid(self.decay[...]))
        decay, h = jax.lax.associative_scan(_combine, (a.astype(u.dtype), u), axis=1)
        h = h + decay * start.h[:, None]  # adds the tokens before this row
        y = linear(h.astype(x.dtype), self.w_out[...])
        if state is None:
            return y, None
        last_h = jnp.concatenate([start.h[:, None], h], axis=1)[:, -1]
        return y, AverageState(last_h, seq.last_segment(start.last_segment))

    def init_state(self, batch_size, max_length, dtype):
        """Returns the empty state of one layer."""
        dtype, D = jnp.promote_types(dtype, jnp.float32), self.decay[...].shape[-1]
        h = jnp.zeros((batch_size, D), dtype)
        return AverageState(h, jnp.zeros((batch_size,), jnp.int32))

    @staticmethod
    def tp_dims(D, cfg):
        """Returns the sizes that tensor parallelism divides."""
        return {"width": D}

    @staticmethod
    def cost(D, cfg, context):
        """Returns the parameters, FLOPs per token and state of one layer."""
        terms = {
            "projections": TermFlops(4.0 * D * D, 4.0 * D * D),
            "average": TermFlops(2.0 * D, 2.0 * D, elementwise=True),
        }
        return PartCost(2 * D * D + D, 2 * D * D + D, terms, 4 * (D + 1))


def _combine(first, second):
    """Joins two adjacent spans, each a pair (product of its decays, its h from 0)."""
    return first[0] * second[0], second[0] * first[1] + second[1]


# %% [markdown]
# ## The table
#
# In the project, a mixer is a file in `arch/mixers/` and two lines in `arch/config.py`
# (`docs/mixer.md`). In a notebook, the table is changed in memory. After the next cell,
# `average+mlp` is a layer like any other.

# %%
from arch import MIXERS

MIXERS["average"] = Average

# %% [markdown]
# ## The contracts
#
# The contracts are functions over the table of mixers, in `tests/arch/test_contracts.py`. The next
# cell runs those that find the most errors: no output depends on a future token or on another
# document, packing changes nothing, prefill and steps give the result of the parallel form, float32
# agrees with float64, and the cost agrees with the counted parameters and products. The contracts
# need pytest.

# %%
sys.path += ["tests", "tests/arch"]
import test_contracts as contracts
import tiny

tiny.model.cache_clear()  # in case the class above was defined again
for contract in (
    contracts.test_views,
    contracts.test_packed_documents_are_as_if_alone_and_padding_changes_nothing,
    contracts.test_prefill_and_steps_are_the_parallel_form,
    contracts.test_precision,
    contracts.test_cost_counts_every_leaf_and_every_multiply_add,
):
    contract("average", {})
    print("passed:", contract.__name__.removeprefix("test_").replace("_", " "))

# %% [markdown]
# ## The comparison with attention, at the same cost

# %%
from data.open_stores import open_data
from protocol.study.plan import format_plan, reported_runs
from protocol.study.run_study import default_choices, run_all
from protocol.study.study import Study, describe_unmatched, make_plan
from settings.cli import freeze
from training.settings import Settings, defaults

c = defaults()
c.data.tokenizer = "bpe:1024"
c.model.width, c.model.depth = 64, 2
c.model.attention.heads = 2
c.train.batch_size, c.train.seq_len, c.train.steps = 8, 128, STEPS
c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, STEPS // 10
c.optimizer.schedule, c.optimizer.cooldown_fraction, c.optimizer.final_lr_ratio = "wsd", 0.4, 0.0
c.eval.tasks = ("bits_per_byte",)
c.log.every, c.log.console = max(STEPS // 10, 1), "off" if FAST else "plain"
shared_settings = freeze(Settings, c)
study = Study(
    candidates={
        "attention": {"model.layers": ("attention+mlp",)},
        "average": {"model.layers": ("average+mlp",)},
    },
    reference="attention",
    comparisons=(("average", "attention"),),
    margin=0.02,
    seeds=SEEDS,
)
vocab_size = open_data(shared_settings.data).tokenizer.vocab_size
matched_plan = make_plan(study, shared_settings, vocab_size)
runs = reported_runs(matched_plan.plan, default_choices(matched_plan.plan))
print(*format_plan(matched_plan.plan, runs, {}), *describe_unmatched(matched_plan), sep="\n")

# %%
results = run_all(runs, WORKDIR, print, study.metric)

# %% [markdown]
# ## The learned decays
#
# A channel with decay $a$ averages over about the last $1 / (1 - a)$ tokens. The initial value is
# 3.7 tokens for all channels, and the few steps of `FAST` do not change it much.

# %%
import matplotlib.pyplot as plt

from eval.load_run import load_run

run = next(run for run in runs if run.cell_key.candidate == "average")
trainable = load_run(WORKDIR / run.name)[0].trainable
decay = jax.nn.sigmoid(trainable.model.stack.blocks[0].mixer.decay[...])  # [layers D]
for layer, values in enumerate(jax.device_get(decay)):
    plt.hist(1 / (1 - values), bins=20, alpha=0.6, label=f"layer {layer}")
plt.xlabel("tokens in the average, 1 / (1 - a)")
plt.ylabel("channels")
plt.legend()
plt.show()

# %% [markdown]
# ## The board

# %%
from protocol.board.board import make_board
from protocol.board.export import write_board
from protocol.records.load import load_records

board = make_board(*load_records([WORKDIR / run.name for run in runs]))
_ = write_board(board, WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
