# %% [markdown]
# # A scaling law
#
# How large should a model be for a given number of training FLOPs? At a small budget a small model
# is better, because it has seen more text. At a larger budget a larger model is better. This
# notebook trains small Transformers of six sizes at each of four budgets, fits the law to the three
# smaller budgets, and tests it on the largest one. A law that predicts runs it has not seen is
# worth extrapolating from.
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

FAST = jax.default_backend() == "cpu"  # 19 minutes on two cores with other load
BUDGETS = (
    (2e11, 4e11, 8e11, 1.6e12) if FAST else (5e12, 1e13, 2e13, 4e13)
)  # training FLOPs of a run
WIDTH, DEPTH, BATCH_SIZE, SEQ_LEN = (64, 2, 4, 128) if FAST else (128, 4, 16, 128)
TOKENS_PER_PARAM = 32 if FAST else 20  # of the middle sizes of each budget
WORKDIR = RUNS / f"scaling_law-{BUDGETS[-1]:g}"

# %% [markdown]
# ## The study
#
# A study of one candidate compares nothing. It plans six sizes at each budget, from a quarter to
# four times the middle size, and solves their steps with exact counts of FLOPs. The size N of a
# model is its number of parameters without embedding and head, and D its number of tokens.
#
# - **Each run is cooled down.** Its learning rate is constant after the warmup and falls to 0 in
#   the last part of the run. An intermediate step of a longer run would be worse than a run that
#   ends there.
# - **The learning rate follows the width.** Under muP (`docs/laws.md`) the rate that is best at one
#   width is near the best at others. With one rate for all sizes, the larger models would have a
#   rate that is too high, and the law would describe the rate and not the size.

# %%
from data import open_data
from protocol.study.plan import reported_runs
from protocol.study.run_study import default_choices
from protocol.study.study import Study, make_plan
from settings.cli import freeze
from training.settings import Settings, defaults

c = defaults()
c.data.tokenizer = "bytes"
c.model.width, c.model.depth, c.model.attention.heads = WIDTH, DEPTH, WIDTH // 16
c.model.parametrization, c.model.base_width = "mup", WIDTH
c.train.batch_size, c.train.seq_len = BATCH_SIZE, SEQ_LEN
c.optimizer.learning_rate, c.optimizer.warmup = 4e-3, 0.1
c.optimizer.schedule, c.optimizer.cooldown_fraction, c.optimizer.final_lr_ratio = "wsd", 0.4, 0.0
c.eval.tasks, c.log.console = ("bits_per_byte",), "off"
shared_settings = freeze(Settings, c)

study = Study(
    candidates={"dense": {}},
    reference="dense",
    comparisons=(),
    margin=0.02,
    match_by="isoflop",
    budgets=BUDGETS,
    tokens_per_param=TOKENS_PER_PARAM,
    seeds=(0,),
)
vocab_size = open_data(shared_settings.data).tokenizer.vocab_size
matched_plan = make_plan(study, shared_settings, vocab_size)
runs = reported_runs(matched_plan.plan, default_choices(matched_plan.plan))
for m in matched_plan.matched.values():
    print(
        f"{m.budget:.1e} FLOPs: {m.costs.non_embedding_params:9,.0f} parameters "
        f"{m.costs.tokens:11,.0f} tokens {m.settings.train.steps:7,} steps"
    )

# %% [markdown]
# ## The runs
#
# Each run ends with its score on the test split, in bits per byte.

# %%
from protocol.study.run_study import run_all

results = run_all(runs, WORKDIR, print, study.metric)

# %% [markdown]
# ## The test of the law
#
# The surface L = E + A / N^alpha + B / D^beta is fitted to the runs of all budgets but the largest.
# Then it predicts each run of the largest budget, which it has not seen. The law is useful if these
# errors are about as large as the scatter of the runs that it was fitted to.

# %%
import numpy as np

from protocol.fit.points import read_runs
from protocol.statistics.surface import fit_surface

(source,) = read_runs([WORKDIR], with_head=False)
seen = [p for p in source.points if p.budget < max(BUDGETS)]
unseen = [p for p in source.points if p.budget == max(BUDGETS)]
held_out_law = fit_surface(seen, n_resamples=1)
errors = np.array([p.loss - held_out_law.law.loss(p.params, p.tokens) for p in unseen])
for p, error in zip(unseen, errors, strict=True):
    print(
        f"{p.params:9,.0f} parameters: {p.loss:.3f} bits per byte, predicted {p.loss - error:.3f}"
    )
print(f"root mean square of the errors {np.sqrt(np.mean(errors**2)):.3f} bits per byte")
print(f"scatter of the fitted runs     {np.sqrt(held_out_law.scatter):.3f} bits per byte")

# %% [markdown]
# ## The best sizes
#
# Two fits of all runs estimate the best size at each budget: a parabola in log N (approach 2 of
# arXiv:2203.15556), and the surface. Where they disagree, no size can be recommended.

# %%
from protocol.statistics.isoflop import fit_minima

surface = fit_surface(source.points, n_resamples=200)
minima = fit_minima(source.points)
optima = [surface.optimum(m.budget) for m in minima]


def describe_size(params, interval):
    ends = "unbounded" if interval is None else f"{interval.low:,.0f} to {interval.high:,.0f}"
    return f"{params:9,.0f} ({ends})"


for m, best in zip(minima, optima, strict=True):
    by_parabola = describe_size(m.params, m.params_interval)
    by_surface = describe_size(best.params, best.params_interval)
    print(f"{m.budget:.1e} FLOPs: parabola {by_parabola}, surface {by_surface}")

# %% [markdown]
# `python -m protocol.fit` prints this report. It gives the interval of each number, the factor by
# which a prediction extrapolates, and the run without which the optimum moves most. Its optima are
# at 6 N D = C, since the exact FLOPs of a size that was not trained are not known.

# %%
from protocol.fit.describe import describe
from protocol.fit.report import FitSettings, fit_points

report = fit_points(source, FitSettings(approaches=("2", "surface"), budgets=(2 * max(BUDGETS),)))
print("\n".join(describe(report)))

# %% [markdown]
# The left panel shows the runs, the parabolas with their minima, and the surface (dashed) at each
# budget. A hollow minimum is outside the sizes. The right panel shows the best sizes by both fits,
# with their intervals.
#
# **What the fits do not say.** Each size has one seed, so that the scatter of seeds and the misfit
# of the law cannot be told apart. The intervals do not cover a change of the law beyond the runs,
# and these models are a million times smaller than those of published laws.
# `configs/compare/isoflop.py` is a study of two architectures with two seeds.

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")


def plot_size(budget, params, interval, color, marker):
    right.plot([budget], [params], marker, color=color)
    if interval:
        right.plot([budget] * 2, [*interval], color=color)


for i, (m, best) in enumerate(zip(minima, optima, strict=True)):
    color = f"C{i}"
    at_budget = sorted(p for p in source.points if p.budget == m.budget)
    sizes, tokens, losses = (np.array([p[k] for p in at_budget]) for k in range(3))
    grid = np.geomspace(sizes[0], sizes[-1], 100)
    left.plot(sizes, losses, "o", color=color, label=f"{m.budget:.1e} FLOPs")
    left.plot(grid, m.loss_at(grid), color=color)
    left.plot(sizes, surface.law.loss(sizes, tokens), "--", color=color)
    fill = "none" if m.is_at_edge else color
    left.plot([m.params], [m.loss], "*", color=color, markerfacecolor=fill, markersize=14)
    if not m.is_at_edge:
        plot_size(0.97 * m.budget, m.params, m.params_interval, color, "*")
    plot_size(1.03 * m.budget, best.params, best.params_interval, color, "s")
left.set(xscale="log", xlabel="parameters", ylabel="bits per byte, test")
right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="best number of parameters")
right.set_title("stars: parabolas; squares: surface", fontsize="medium")
left.tick_params(axis="x", which="minor", labelbottom=False)
left.legend(fontsize="small")
plt.show()

# %% [markdown]
# ## The board
#
# The board shows the curve of each budget, with the costs of all runs.

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
