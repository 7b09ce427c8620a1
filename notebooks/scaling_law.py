# %% [markdown]
# # A scaling law
#
# How large should a model be for a given number of training FLOPs? Transformers of five sizes are
# trained. At a small budget a small model is better, because it has seen more text. At a larger
# budget a larger model is better. This notebook estimates the size with the lowest loss at each
# budget, and how this size grows with the budget.
#
# **To interrupt and resume.** Interrupt a cell that trains: it finishes its step and saves a
# checkpoint. Run the cell again: it resumes, with the same bits. In Colab, mount Drive (the folder
# icon, *Mount Drive*) before the first cell. The runs are then stored on Drive, and after a
# disconnect you run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with smaller budgets.
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
MAX_BUDGET = 2e10 if FAST else 4e13  # training FLOPs of each run
SIZES = ((4, 1), (8, 1), (16, 1), (16, 2), (32, 1))  # (width, depth)
if not FAST:
    SIZES = ((64, 4), (96, 6), (128, 8), (192, 10), (256, 12))
BATCH_SIZE = 8 if FAST else 16
STRIDE = 64 if FAST else 4  # one in STRIDE batches of the valid split is evaluated
WORKDIR = RUNS / f"scaling_law-{MAX_BUDGET:g}"

# %% [markdown]
# ## The grid
#
# The number of steps of each size is solved for the largest budget, with exact counts of FLOPs. The
# learning rate is constant after the warmup. A run is therefore, at an intermediate step, also the
# run of a smaller budget, and four budgets cost as much as one. With a learning rate that decays
# until the end of a run, as is usual, an intermediate step would be worse than a shorter run. Each
# budget would then need its own runs, which `protocol.study.budget.match_isoflop` plans.
#
# The size of a model is its number of parameters without embedding and head.

# %%
from data.open_stores import open_data
from protocol.study.budget import compute_run_costs
from settings.cli import freeze
from training.settings import Settings, defaults, resolve

N_BUDGETS = 4  # the budgets are multiples of MAX_BUDGET / N_BUDGETS


def make_settings(width, depth, steps):
    c = defaults()
    c.model.width, c.model.depth = width, depth
    c.model.attention.heads = max(width // 16, 1)
    c.train.batch_size, c.train.seq_len, c.train.steps = BATCH_SIZE, 128, steps
    c.optimizer.schedule = "constant"
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, 10
    c.eval.every = steps // N_BUDGETS
    c.eval.tasks, c.eval.splits, c.eval.limit = ("bits_per_byte",), ("valid",), 0
    c.checkpoint.every, c.log.console = 0, "off"
    settings = freeze(Settings, c)
    return resolve(settings, open_data(settings.data).tokenizer.vocab_size)


def solve_steps(width, depth):
    flops = compute_run_costs(make_settings(width, depth, N_BUDGETS)).training_flops
    return make_settings(width, depth, N_BUDGETS * round(MAX_BUDGET / flops))


runs = {f"{w}x{d}": solve_steps(w, d) for w, d in SIZES}
for name, settings in runs.items():
    costs = compute_run_costs(settings)
    print(
        f"{name:6} {costs.non_embedding_params:9,.0f} parameters {costs.tokens:12,.0f} tokens "
        f"{settings.train.steps:6,} steps {costs.training_flops:.3g} FLOPs"
    )

# %% [markdown]
# ## Five runs
#
# `runner.train` takes a function that makes the evaluators. The default evaluator reads the whole
# validation split during training. The evaluator in this cell reads a few windows of it, the same
# windows for all models.

# %%
from eval import harness
from eval.task import EvalContext
from eval.tasks.bits_per_byte import evaluate_store, read_batches
from training import runner


def make_evaluators(job):
    program, valid = job.program, job.data.valid
    ctx = EvalContext(None, program.mesh, program.settings, program.objective, job.data)
    windows = [*read_batches(ctx, valid, stride=STRIDE)]
    _, evaluate_split = harness.make_evaluators(job)  # the whole split, for the board

    def during_training(state, step):
        totals, _ = evaluate_store(ctx._replace(trainable=state.trainable), valid, windows)
        nats, n_tokens = totals["nats"]
        return {"windows/nats_per_token": nats / n_tokens}

    def after_training(state, step):
        return during_training(state, step) | evaluate_split(state, step)

    return during_training, after_training


for name, settings in runs.items():
    print(f"## {name}")
    runner.train(settings, WORKDIR / name, make_evaluators)

# %% [markdown]
# ## The minima
#
# At each budget a parabola in the logarithm of the size is fitted (the second approach of
# arXiv:2203.15556). Its minimum has a 95 % interval by Fieller's method. The interval is unbounded
# if the points do not determine the curvature of the parabola. A minimum at the edge of the sizes
# is not a result: then train other sizes.

# %%
from protocol.statistics.isoflop import fit_minima
from protocol.statistics.scaling_law import Point
from training.run.folder import read_metrics


def read_points(name, settings):
    costs = compute_run_costs(settings)
    epoch_tokens = open_data(settings.data).train.n_tokens
    for row in read_metrics(WORKDIR / name / "metrics.jsonl"):
        if "windows/nats_per_token" in row:
            fraction = row["step"] / settings.train.steps
            yield Point(
                params=costs.non_embedding_params,
                tokens=costs.tokens * fraction,
                loss=row["windows/nats_per_token"],
                training_flops=costs.training_flops * fraction,
                epochs=costs.tokens * fraction / epoch_tokens,
                budget=MAX_BUDGET * fraction,
            )


points = [point for name, settings in runs.items() for point in read_points(name, settings)]
minima = fit_minima(points)
for m in minima:
    interval = m.params_interval
    note = f"95 %: {interval.low:,.0f} to {interval.high:,.0f}" if interval else "95 %: unbounded"
    if m.is_at_edge:
        note = "at the edge of the sizes"
    print(
        f"{m.budget:.3g} FLOPs: {m.params:9,.0f} parameters ({note}), {m.loss:.3f} nats per token"
    )

# %% [markdown]
# ## The law
#
# A power law is fitted to the minima that are not at the edge. The interval of its exponent is
# from a bootstrap. It is narrower than it should be, because each run has one seed and the budgets
# share their runs. Published exponents are near 0.5. Models of a few thousand parameters, all
# trained with the same learning rate, need not agree with them. A study that supports a claim needs
# larger models, tuned learning rates and several seeds (`docs/sweeps.md`).

# %%
from errors import DataError
from protocol.statistics.isoflop import fit_isoflop

law = None
try:
    fit = fit_isoflop(points, n_resamples=200)
    law, (low, high) = fit.params, fit.exponent_interval
    compute = 10 * MAX_BUDGET
    print(f"parameters = {law.factor:.3g} FLOPs^{law.exponent:.2f} (95 %: {low:.2f} to {high:.2f})")
    print(f"extrapolated to {compute:.3g} FLOPs: {law.predict(compute):,.0f} parameters")
except DataError as error:
    print(error)

# %% [markdown]
# The left panel shows the loss by size at each budget, with the minima. A hollow minimum is at the
# edge of the sizes. The right panel shows the size at the other minima by budget, with their
# intervals and the law.

# %%
import matplotlib.pyplot as plt
import numpy as np

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for i, m in enumerate(minima):
    color, points_at_budget = f"C{i}", [p for p in points if p.budget == m.budget]
    sizes = np.array([p.params for p in points_at_budget])
    grid = np.geomspace(sizes.min(), sizes.max(), 100)
    left.plot(sizes, [p.loss for p in points_at_budget], ".", color=color)
    left.plot(grid, m.loss_at(grid), color=color, label=f"{m.budget:.3g} FLOPs")
    fill = "none" if m.is_at_edge else color
    left.plot([m.params], [m.loss], "D", color=color, markerfacecolor=fill)
    if not m.is_at_edge:
        right.plot([m.budget], [m.params], "D", color=color)
        if m.params_interval:
            right.plot([m.budget] * 2, [*m.params_interval], color=color, alpha=0.5)
if law:
    budgets = np.array([m.budget for m in minima if not m.is_at_edge])
    right.plot(budgets, law.predict(budgets), color="grey")
left.set(xscale="log", xlabel="parameters", ylabel="nats per token, valid")
right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="parameters at the minimum")
left.legend(fontsize="small")
plt.show()

# %% [markdown]
# ## The board
#
# The board shows one run of each size at one budget. It ranks nothing, but it shows all costs side
# by side.

# %%
from protocol.board.board import make_board
from protocol.board.export import write_board
from protocol.records.load import load_records

board = make_board(*load_records([WORKDIR / name for name in runs]))
_ = write_board(board, WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
