# %% [markdown]
# # A scaling law
#
# How large should a model be for the FLOPs that there are? Transformers of five sizes are trained.
# At a small budget a small model is ahead, since it has seen more text; at a larger one a larger
# model is. The size with the least loss at each budget, and how it moves, is the answer.
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
LARGEST = 2e10 if FAST else 4e13  # training FLOPs of each run
SIZES = ((4, 1), (8, 1), (16, 1), (16, 2), (32, 1))  # (width, depth)
if not FAST:
    SIZES = ((64, 4), (96, 6), (128, 8), (192, 10), (256, 12))
BATCH, SHARE = (8, 64) if FAST else (16, 4)  # rows of a step; one in SHARE of valid is judged
WORKDIR = RUNS / f"scaling_law-{LARGEST:g}"

# %% [markdown]
# ## The grid
#
# The number of steps of each size is solved for the largest budget, with FLOPs counted exactly. The
# learning rate is constant after a warm-up: so a run is, on its way, also the run of every smaller
# budget, and four budgets cost what one does. (A rate that falls to the end of a run, as most do,
# would make its middle worse than a shorter run; then each budget needs runs of its own, and
# `protocol.budget.isoflop` plans them.)
#
# A size is the parameters without embedding and head.

# %%
from data import open_data
from protocol.budget import measured
from training.flags import frozen
from training.settings import Settings, defaults, resolved

PARTS = 4  # budgets: this many equal parts of the largest


def settings(width, depth, steps=PARTS):
    c = defaults()
    c.model.width, c.model.depth = width, depth
    c.model.attention.heads = max(width // 16, 1)
    c.train.batch, c.train.length, c.train.steps = BATCH, 128, steps
    c.optimizer.schedule = "constant"
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, 10
    c.eval.every = steps // PARTS
    c.eval.tasks, c.eval.splits = ("bits_per_byte",), ("valid",)
    c.checkpoint.every, c.log.console = 0, "off"
    made = frozen(Settings, c)
    return resolved(made, open_data(made.data).tokenizer.vocab)


def planned(width, depth):
    least = measured(settings(width, depth)).training_flops
    return settings(width, depth, PARTS * round(LARGEST / least))


runs = {f"{w}x{d}": planned(w, d) for w, d in SIZES}
for name, run in runs.items():
    cost = measured(run)
    print(
        f"{name:6} {cost.body_params:9,.0f} parameters {cost.tokens:12,.0f} tokens "
        f"{run.train.steps:6,} steps {cost.training_flops:.3g} FLOPs"
    )

# %% [markdown]
# ## Five runs
#
# The loop is given what judges a model on its way: here not the whole validation split, as the
# default would, but the same few windows of it for all.

# %%
from eval import harness, held_out
from eval.task import Subject
from training import launch


def judges(job):
    made = job.program
    about = Subject(None, made.mesh, made.settings, made.objective, job.data)
    windows = [*held_out.read(about, job.data.valid, every=SHARE)]
    _, whole = harness.judges(job)  # bits per byte of the whole split, for the board

    def during(learner, step):
        found, _ = held_out.swept(about._replace(learner=learner), job.data.valid, windows)
        nats, predicted = found["nats"]
        return {"windows/nats_per_token": nats / predicted}

    return during, lambda learner, step: during(learner, step) | whole(learner, step)


for name, run in runs.items():
    print(f"## {name}")
    launch.train(run, WORKDIR / name, judges)

# %% [markdown]
# ## The minima
#
# A parabola in the logarithm of the size is fitted at each budget (the second approach of
# arXiv:2203.15556). Its minimum has a 95 % interval, Fieller's: "anything" says that so few points,
# which do not lie on a parabola, pin nothing down. A minimum at the edge of the sizes is no
# finding, and hollow in the picture: then train other sizes.

# %%
from protocol import frontier, scaling
from training.run import read_metrics


def points_of(name, run):
    whole, epoch = measured(run), open_data(run.data).train.tokens
    for row in read_metrics(WORKDIR / name / "metrics.jsonl"):
        if "windows/nats_per_token" in row:
            share = row["step"] / run.train.steps
            yield scaling.Point(
                params=whole.body_params,
                tokens=whole.tokens * share,
                loss=row["windows/nats_per_token"],
                flops=whole.training_flops * share,
                epochs=whole.tokens * share / epoch,
                budget=LARGEST * share,
            )


points = [point for name, run in runs.items() for point in points_of(name, run)]
minima = frontier.minima(points)
for m in minima:
    span = f"{m.interval.low:,.0f} to {m.interval.high:,.0f}" if m.interval else "anything"
    where = "at the edge of the sizes" if m.edge else f"95 %: {span}"
    print(f"{m.budget:.3g} FLOPs: {m.params:9,.0f} parameters ({where}), {m.loss:.3f} nats a token")

# %% [markdown]
# ## The law
#
# Through the minima that are inside goes a power law; the interval of its exponent is of a
# bootstrap. With one seed of each run, and budgets that share their runs, it is narrower than it
# should be. Published exponents are near 0.5; models of a few thousand parameters, all with the
# same learning rate, need not agree. A study for a claim takes larger ones, tuned, with seeds
# (`docs/sweeps.md`).

# %%
from errors import DataError

law = None
try:
    found = frontier.isoflop(points, resamples=200)
    law, (low, high) = found.params, found.exponent
    print(f"parameters = {law.factor:.3g} FLOPs^{law.exponent:.2f} (95 %: {low:.2f} to {high:.2f})")
    print(f"at {10 * LARGEST:.3g} FLOPs: {law.at(10 * LARGEST):,.0f} parameters, if it goes on so")
except DataError as error:
    print(error)

# %%
from IPython.display import Image

from protocol.scaling_plot import Drawn, plot

picture = WORKDIR / "isoflop.png"
plot(picture, {"dense": Drawn(points, minima, law)}, "nats a token, valid")
Image(picture)

# %% [markdown]
# ## The board
#
# Sizes of one budget, a run of each: nothing is ranked, but all that they cost stands side by side.

# %%
from protocol import render
from protocol.board import board
from protocol.collect import collect

_ = render.write(board(*collect([WORKDIR / name for name in runs])), WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
