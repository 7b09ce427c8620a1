# %% [markdown]
# # Add a mixer
#
# A mixer lets tokens talk to each other. This notebook writes one in a cell, has it keep the
# contracts that every mixer of the project keeps, trains it beside attention at the same cost,
# and shows its row on the board.
#
# **To stop and go on.** Interrupt a cell that trains: it finishes its step and saves. Run it
# again: it goes on from there, to the same bits. In Colab, mount Drive (the folder icon, *Mount
# Drive*) before the first cell, and the runs are on it: after a disconnect, run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with fewer steps.
# Nobody has yet run it in Colab or on a TPU.

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

FAST = jax.default_backend() == "cpu"  # minutes on two cores
STEPS, SEEDS = 30 if FAST else 600, (0, 1, 2)
WORKDIR = RUNS / f"add_a_mixer-{STEPS}"

# %% [markdown]
# ## The mixer
#
# A moving average: $h_t = a \odot h_{t-1} + u_t$, with a decay $a$ for each channel that is
# learned, and $h = 0$ where a document begins (the plain form of the averages of Mega,
# arXiv:2209.10655). Because it is linear in $h$, all steps are computed at once by an associative
# scan.
#
# Beside the mathematics a mixer states three things: its state (what decoding keeps of a row),
# how a mesh may cut it, and its cost.

# %%
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch.ledger import Bill, Work
from arch.linear import linear
from arch.sequence import ONE_WAY
from arch.sharding import P, matrix, vector


class AverageState(NamedTuple):
    h: Float[Array, "B D"]
    last: Int[Array, " B"]  # segment of the last token


class Average(nnx.Module):
    """A mixer: h[t] = a h[t-1] + u[t], y = w_out h."""

    views = staticmethod(lambda cfg: ONE_WAY)  # causal; the backbone can run it both ways

    def __init__(self, D, cfg, *, key, scale=1.0):
        keys = jax.random.split(key)
        self.w_in = matrix(keys[0], (D, D), P("data", "model"))
        self.decay = vector(D, 1.0)  # a = sigmoid(1) = 0.73 at first
        self.w_out = matrix(keys[1], (D, D), P("model", "data"), scale)

    def __call__(self, x, seq, *, state=None, memory=None, key=None):
        old = self.start(x.shape[0], 0, x.dtype) if state is None else state
        u = linear(x, self.w_in[...]).astype(old.h.dtype)
        a = jnp.where(seq.begins(old.last)[..., None], 0, jax.nn.sigmoid(self.decay[...]))
        since, h = jax.lax.associative_scan(_then, (a.astype(u.dtype), u), axis=1)
        h = h + since * old.h[:, None]  # what was before these tokens
        y = linear(h.astype(x.dtype), self.w_out[...])
        if state is None:
            return y, None
        return y, AverageState(jnp.concatenate([old.h[:, None], h], 1)[:, -1], seq.ends(old.last))

    def start(self, batch, capacity, dtype):
        wide, D = jnp.promote_types(dtype, jnp.float32), self.decay[...].shape[-1]
        return AverageState(jnp.zeros((batch, D), wide), jnp.zeros((batch,), jnp.int32))

    @staticmethod
    def cuts(D, cfg):
        return {"width": D}

    @staticmethod
    def cost(D, cfg, place):
        work = {
            "projections": Work(4.0 * D * D, 4.0 * D * D),
            "average": Work(2.0 * D, 2.0 * D, elementwise=True),
        }
        return Bill(2 * D * D + D, 2 * D * D + D, work, 4 * (D + 1))


def _then(one, two):
    """Of two stretches, each (product of its decays, its h from 0), the stretch of both."""
    return one[0] * two[0], two[0] * one[1] + two[1]


# %% [markdown]
# ## Into the table
#
# In the project this is a file in `arch/` and a line in `arch/config.py`; `docs/mixer.md` does
# that. In a notebook the table is changed in memory. From here on `average+mlp` is a layer like
# any other.

# %%
from arch import MIXERS

MIXERS["average"] = Average

# %% [markdown]
# ## The contracts
#
# They are functions over the table of mixers, in `tests/test_contracts.py`. These are the ones
# that find most: no output feels a future token or another document, packing changes nothing,
# prefill and steps give what the parallel form gives, float32 agrees with float64, and cost is
# what is counted. They need pytest.

# %%
import sys

sys.path.append("tests")
import test_contracts as contracts
import tiny

tiny.model.cache_clear()  # in case the class above was run again
for contract in (
    contracts.test_views,
    contracts.test_packed_documents_are_as_if_alone_and_padding_changes_nothing,
    contracts.test_prefill_and_steps_are_the_parallel_form,
    contracts.test_precision,
    contracts.test_cost_counts_every_leaf_and_every_multiply_add,
):
    contract("average", {})
    print("holds:", contract.__name__.removeprefix("test_").replace("_", " "))

# %% [markdown]
# ## Beside attention, at the same cost

# %%
from data import open_data
from protocol import conduct, plan, study
from protocol.study import Study
from training.flags import frozen
from training.settings import Settings, defaults

c = defaults()
c.data.tokenizer = "bpe:1024"
c.model.width, c.model.depth = 64, 2
c.model.attention.heads = 2
c.train.batch, c.train.length, c.train.steps = 8, 128, STEPS
c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, STEPS // 10
c.optimizer.schedule, c.optimizer.decay, c.optimizer.final = "wsd", 0.4, 0.0
c.eval.tasks = ("bits_per_byte",)
c.log.every, c.log.console = max(STEPS // 10, 1), "off" if FAST else "plain"
shared = frozen(Settings, c)
declared = Study(
    candidates={
        "attention": {"model.layers": ("attention+mlp",)},
        "average": {"model.layers": ("average+mlp",)},
    },
    reference="attention",
    comparisons=(("average", "attention"),),
    margin=0.02,
    seeds=SEEDS,
)
made = study.planned(declared, shared, open_data(shared.data).tokenizer.vocab)
runs = plan.reported(made.plan, conduct.untuned(made.plan))
print(*plan.lines(made.plan, runs, {}), *study.unmatched(made), sep="\n")

# %%
results = conduct.conduct(runs, WORKDIR, print, declared.metric)

# %% [markdown]
# ## The decays that were learned
#
# A channel with decay $a$ sees about $1 / (1 - a)$ tokens back. All began at 3.7; the few steps of
# `FAST` do not take them far.

# %%
import matplotlib.pyplot as plt

from eval.subject import from_run

run = next(run for run in runs if run.key.candidate == "average")
learner = from_run(WORKDIR / run.name)[0].learner
decay = jax.nn.sigmoid(learner.model.stack.blocks[0].mixer.decay[...])  # [layers D]
for layer, values in enumerate(jax.device_get(decay)):
    plt.hist(1 / (1 - values), bins=20, alpha=0.6, label=f"layer {layer}")
plt.xlabel("tokens seen back, 1 / (1 - a)")
plt.ylabel("channels")
plt.legend()
plt.show()

# %% [markdown]
# ## The board

# %%
from protocol import render
from protocol.board import board
from protocol.collect import collect

_ = render.write(board(*collect([WORKDIR / run.name for run in runs])), WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
