"""What a run costs: the tokens it processes and the FLOPs per token, model and executed.

All counts follow from the settings alone. In a mixture each part processes its own rows, so costs
per token are means over the tokens of all parts.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from arch import Cost, compute_cost
from arch.cost import add_objective_cost, mean_cost
from objectives import RowSpec
from settings.json_types import JsonObject
from training import memory_bank
from training.gradients import BatchDependence, batch_dependence
from training.settings import Settings


def model_cost(settings: Settings) -> Cost:
    """Returns the cost per token of the model on its training rows.

    In a mixture this is the mean over the tokens of all parts.
    """
    workloads = [*_workloads(settings, max(settings.train.steps, 1))]
    costs = [workload.cost for workload in workloads]
    if len(costs) == 1:
        return costs[0]
    total = sum(workload.equivalent_tokens for workload in workloads)
    return mean_cost(costs, [workload.equivalent_tokens / total for workload in workloads])


def run_tokens(settings: Settings) -> int:
    """Returns the tokens of the whole run, each of which costs what `model_cost` states.

    A token that is processed without a gradient, to mine negatives, counts as a third.
    """
    return round(sum(w.equivalent_tokens for w in _workloads(settings, settings.train.steps)))


def decode_flops(settings: Settings) -> float:
    """Returns the model FLOPs of generating one token after `train.seq_len` - 1 others.

    It is the difference between rows of this length and rows that are one token shorter, so that
    whatever reads the context, as attention does, is counted at this context. A row without a
    causal view generates nothing; it counts what its model would cost in that view.
    """
    length = max(settings.train.seq_len, 2)
    source = settings.row_spec.source_length if settings.model.encoder.depth else 0
    long, short = (
        n * compute_cost(settings.model, n, source_length=source).model_flops
        for n in (length, length - 1)
    )
    return long - short


def executed_flops_per_token(settings: Settings) -> float:
    """Returns the executed FLOPs of training per token of `run_tokens`, forward and backward.

    They include what rematerialized blocks compute again, and the forward pass without a gradient
    that gradient caching and a balance loss over the batch add (`training/gradients.py`).
    """
    total_flops = total_tokens = 0.0
    for workload in _workloads(settings, max(settings.train.steps, 1)):
        cost = workload.cost
        trained_flops = 3 * cost.executed_flops + cost.recomputed_flops + workload.extra_flops
        total_flops += (
            workload.trained_tokens * trained_flops
            + workload.forward_only_tokens * cost.executed_flops
        )
        total_tokens += workload.equivalent_tokens
    return total_flops / total_tokens


def cost_record(cost: Cost, settings: Settings) -> JsonObject:
    """Returns the cost as run.json records it; FLOPs are per token of `run_tokens`."""
    return {
        "run_tokens": run_tokens(settings),
        "params": cost.params,
        "active_params": cost.active_params,
        "non_embedding_params": cost.non_embedding_params,
        "params_by_part": cost.parts,
        "model_flops": cost.model_flops,
        "executed_flops": cost.executed_flops,
        "non_embedding_flops": cost.non_embedding_flops,
        "training_flops": cost.training_flops,
        "executed_training_flops": executed_flops_per_token(settings),
        "terms": {name: dataclasses.asdict(term) for name, term in cost.terms.items()},
        "state_bytes": cost.state_bytes,
        "decode_flops": decode_flops(settings),
    }


class _Workload(NamedTuple):
    """The tokens that one part of a mixture processes in a number of steps."""

    cost: Cost  # per token
    dependence: BatchDependence  # what a microbatch needs of the rest of the batch
    trained_tokens: float  # tokens processed with a gradient
    forward_only_tokens: float  # tokens processed without a gradient, to mine negatives

    @property
    def equivalent_tokens(self) -> float:
        """Tokens in units of the cost of a trained one; a forward pass costs a third of it."""
        return self.trained_tokens + self.forward_only_tokens / 3

    @property
    def extra_flops(self) -> float:
        """Executed FLOPs per trained token of a further forward pass over all microbatches.

        The pass that counts the load of experts omits the logits.
        """
        if self.dependence == "rows":
            return self.cost.executed_flops
        if self.dependence == "counts":
            return self.cost.executed_flops - self.cost.terms["head.logits"].executed
        return 0.0


def _workloads(settings: Settings, steps: int) -> Iterator[_Workload]:
    """Yields the workload of each part of the mixture, or of the one objective."""
    train = settings.train
    for part in settings.mixture_parts():
        spec = part.objective.row_spec(settings.model, train.seq_len)
        yield _Workload(
            cost=_objective_cost(settings, spec),
            dependence=batch_dependence(part.objective, settings.model, train.grad_accum_steps),
            trained_tokens=steps * train.batch_size * spec.tokens_per_row(train.seq_len),
            forward_only_tokens=memory_bank.extra_tokens(settings, part, steps),
        )


def _objective_cost(settings: Settings, spec: RowSpec) -> Cost:
    """The cost per token of the model on rows of `spec`, with the objective's own weights."""
    length = spec.target_length or settings.train.seq_len
    logit_fraction = (spec.max_targets or length) / length if spec.needs_logits else 0.0
    cost = compute_cost(
        settings.model,
        length,
        view=spec.view,
        source_length=spec.source_length,
        logit_fraction=logit_fraction,
        images=spec.n_images,
        images_as_prefix=spec.image_prefix[0] > 0,
    )
    return add_objective_cost(cost, spec.extra_cost) if spec.extra_cost else cost
