# %% [markdown]
# # A scaling law
#
# At each of three budgets of training FLOPs a Transformer is trained at five sizes: the larger
# the model, the fewer the tokens. The loss at a budget has a minimum over the size; how the
# minima move with the budget says how large a model should be for more FLOPs than were spent
# here.
#
# **To stop and go on.** Interrupt a cell that trains: it finishes its step and saves. Run it
# again: it goes on from there, to the same bits. In Colab, mount Drive (the folder icon, *Mount
# Drive*) before the first cell, and the runs are on it: after a disconnect, run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with smaller budgets.
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
RUNS = DRIVE / "isoflop" if DRIVE.is_dir() else Path("runs/notebooks").absolute()
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

FAST = jax.default_backend() == "cpu"  # under three minutes on two cores
BUDGETS = (1e10, 2e10, 4e10) if FAST else (1e12, 4e12, 1.6e13)  # training FLOPs of a run
RESAMPLES = 50 if FAST else 200  # of the bootstrap
WORKDIR = RUNS / f"scaling_law-{BUDGETS[0]:g}"

# %% [markdown]
# ## The grid
#
# The sizes are spread around what 20 tokens a parameter would be (arXiv:2203.15556), with one
# shape; the steps are solved for the budget, counted exactly. A size is the parameters without
# embedding and head.

# %%
from data import open_data
from protocol.budget import isoflop
from training.flags import frozen
from training.settings import Settings, defaults, resolved

c = defaults()
c.model.width, c.model.depth = 32, 2
c.model.attention.heads = 2
c.train.batch, c.train.length, c.train.steps = 4, 128, 100
c.optimizer.learning_rate, c.optimizer.warmup = 1e-2, 10  # the same share of every run's steps
c.eval.tasks, c.eval.splits = ("bits_per_byte",), ("valid",)
c.log.console, c.train.compile_cache = "off", str(WORKDIR / "compiled")
shared = frozen(Settings, c)
data = open_data(shared.data)
grid = isoflop({"dense": resolved(shared, data.tokenizer.vocab)}, BUDGETS)
for one in grid:
    model, cost = one.settings.model, one.measures
    print(
        f"{one.budget:.3g} FLOPs: {cost.body_params:7.0f} parameters (width {model.width}, depth "
        f"{model.depth}), {cost.tokens:.3g} tokens, residual {one.residual:+.2%}"
    )

# %% [markdown]
# ## Fifteen runs

# %%
from eval import harness
from training import launch


def folder(one):
    return WORKDIR / f"{one.budget:.3g}-{one.measures.body_params:.0f}"


for one in grid:
    launch.train(one.settings, folder(one), harness.judges)

# %% [markdown]
# ## The minima
#
# A parabola in the logarithm of the size is fitted at each budget; the interval of its minimum is
# Fieller's, at 95 %. A minimum at the edge of the sizes is no finding, and so hollow in the
# picture: then train other sizes.

# %%
from protocol import conduct, frontier, scaling

points = [
    scaling.Point(
        params=one.measures.body_params,
        tokens=one.measures.tokens,
        loss=conduct.score(folder(one), one.settings.train.steps, "valid/nats_per_token"),
        flops=one.measures.training_flops,
        epochs=one.measures.tokens / data.train.tokens,
        budget=one.budget,
    )
    for one in grid
]
minima = frontier.minima(points)
for m in minima:
    span = f"{m.interval.low:.3g} to {m.interval.high:.3g}" if m.interval else "anything"
    where = "at the edge" if m.edge else f"inside, 95 %: {span}"
    print(f"{m.budget:.3g} FLOPs: {m.params:.3g} parameters ({where}), {m.loss:.3f} nats a token")

# %% [markdown]
# ## The laws
#
# Approach 2 of arXiv:2203.15556 puts a power law through the minima, approach 3 fits $L = E + A /
# N^\alpha + B / D^\beta$ to all runs. Intervals are 95 % of a bootstrap. Of fifteen runs with one
# seed each, at sizes as small as these, they are wide, and too narrow all the same.

# %%
from errors import DataError

law = None
try:
    found = frontier.isoflop(points, resamples=RESAMPLES)
    law, (low, high) = found.params, found.exponent
    print(
        f"N at the minimum = {law.factor:.3g} C^{law.exponent:.2f} (95 %: {low:.2f} to {high:.2f})"
    )
except DataError as error:
    print(error)

# %%
fit = scaling.fitted(points, resamples=RESAMPLES)
for name, value, low, high in zip(fit.law._fields, fit.law, fit.low, fit.high, strict=True):
    print(f"{name:6}{value:10.3g}   95 %: {low:.3g} to {high:.3g}")
ahead = 10 * max(BUDGETS)
low, high = fit.interval(lambda law: scaling.optimum(law, ahead).params)
print(f"at {ahead:.3g} FLOPs: {scaling.optimum(fit.law, ahead).params:.3g} parameters")
print(f"  95 %: {low:.3g} to {high:.3g}")

# %%
from IPython.display import Image

from protocol.scaling_plot import Drawn, plot

picture = WORKDIR / "isoflop.png"
plot(picture, {"dense": Drawn(points, minima, law)}, "nats a token, valid")
Image(picture)

# %% [markdown]
# ## The board

# %%
import leaderboard

_ = leaderboard.run([*(str(folder(one)) for one in grid), f"--out={WORKDIR / 'board'}"])

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
