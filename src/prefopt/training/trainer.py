"""The interface of the article that the project started from, with its mistakes mended.

Shapes: B completions, T comparisons, L tokens in a padded row. `DPOTrainer` is a spelling of
recipe options around the one training loop; `docs/article.md` sets the article's code beside
what works here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from prefopt.constraints import Constraint
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import NonFiniteError, RecipeError, TrainingError
from prefopt.objectives.pairwise import dpo
from prefopt.objectives.scores import Comparisons, Scores
from prefopt.policies.load import Policy
from prefopt.policies.reference import freeze
from prefopt.records import Group
from prefopt.runs import atomic_folder
from prefopt.training.checkpoint import save_model
from prefopt.training.display import Display, note_of
from prefopt.training.examples import Prepared, prepare_data
from prefopt.training.inputs import (
    Data,
    Indices,
    as_policy,
    check_evaluation,
    check_logps,
    comparisons_of,
    groups_of,
    groups_of_rows,
    recipe_of,
    refuse_shared,
)
from prefopt.training.loop import Record, State, fit
from prefopt.training.optimizer import make_optimizer
from prefopt.training.prepare import (
    make_job,
    make_lasting,
    make_learner,
    score_reference,
    settle,
)
from prefopt.training.probing import columns_for, first_running, make_probe, make_reward_of

#: groups, or `(x, yw_idxs, yl_idxs)` and maybe a probability for each comparison
Batch: TypeAlias = Sequence[Group] | tuple[Any, ...]


def dpo_loss(
    pi_logps: Tensor,
    ref_logps: Tensor,
    yw_idxs: Indices,
    yl_idxs: Indices,
    beta: float = 0.1,
    probability: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """The DPO loss of each comparison and the implicit reward of each completion.

    Args:
        pi_logps: (B,) policy log-probabilities, summed over each completion, nats.
        ref_logps: (B,) the same under the reference; no gradient goes there.
        yw_idxs: (T,) which completions were preferred.
        yl_idxs: (T,) over which.
        beta: strength of the KL penalty.
        probability: (T,) or one number, that the preferred one is really better; 1 if None.

    Returns:
        Losses (T,), unreduced, and rewards (B,), detached: β·(log π − log π_ref).

    Raises:
        DataError: log-probabilities are not one number per completion, or an index or a
            probability is out of range.

    >>> losses, rewards = dpo_loss(
    ...     torch.tensor([-10.0, -14.0]), torch.tensor([-12.0, -11.0]), [0], [1], beta=0.2
    ... )
    >>> losses, rewards                                 # −log σ(0.2 · (2 − (−3)))
    (tensor([0.3133]), tensor([ 0.4000, -0.6000]))
    """
    check_logps(pi_logps, ref_logps)
    reference = ref_logps.detach()
    comparisons = comparisons_of(pi_logps, yw_idxs, yl_idxs, probability)
    lengths = torch.ones_like(pi_logps, dtype=torch.int64)  # which DPO does not read
    losses = dpo(Scores(pi_logps, reference, lengths), comparisons, beta=beta)
    return losses, beta * (pi_logps.detach() - reference)


class DPOTrainer:
    """Trains a policy with DPO, on files, on groups, or on the caller's own batches.

    Args:
        model: a path or hub id, a `Policy`, or a `transformers` model, which is trained in
            place.
        ref_model: the reference, in the same forms; it is frozen and its dropout switched
            off. None, or the same object as `model`, is the policy as it starts.
        beta: strength of the KL penalty.
        lr: learning rate: the peak of `fit`'s schedule, the rate of every `train_step`.
        tokenizer: of a model that is given as an object.
        **options: any further recipe setting, such as `batch_size`, `epochs`,
            `adapter={"name": "lora"}` or `eval_every`.

    Raises:
        RecipeError: an option is unknown, wrong or without effect.
        PolicyError: a model cannot be used as asked.
    """

    _always_with_probability: ClassVar[bool] = False
    #: what a subclass keeps
    _constraints: tuple[Constraint, ...] = ()

    def __init__(
        self,
        model: str | Path | Policy | Any,
        ref_model: str | Path | Policy | Any | None = None,
        beta: float = 0.1,
        lr: float = 5e-7,
        *,
        tokenizer: Any = None,
        **options: Any,
    ) -> None:
        same = ref_model is model or ref_model is None
        resolved, loss = settle(recipe_of(model, None if same else ref_model, beta, lr, options))
        self.recipe = resolved.recipe
        self.beta = beta
        bits = self.recipe.quantize
        policy = as_policy(model, tokenizer, self.recipe.device, quantize=bits)
        reference = None
        if not same and not isinstance(ref_model, str | Path):
            reference = freeze(as_policy(ref_model, policy.tokenizer, None, name="ref_model"))
            refuse_shared(policy.model, reference.model)
        self._learner = make_learner(
            policy, self.recipe, loss, reference=reference, constraints=self._constraints
        )
        self._learner.reward = make_reward_of(self.recipe)
        self._optimizer: torch.optim.Optimizer | None = None
        self._running: Record = {}

    @property
    def policy(self) -> Policy:
        """What is trained: its model carries the adapter, if there is one."""
        return self._learner.policy

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self.policy.model

    # -- the article's loop ----------------------------------------------------------------

    def compute_loss(
        self,
        pi_logps: Tensor,
        ref_logps: Tensor,
        yw_idxs: Indices,
        yl_idxs: Indices,
        preference_prob: Tensor | float | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean loss of the comparisons, and the reward of every completion.

        Args:
            pi_logps, ref_logps, yw_idxs, yl_idxs: as in `dpo_loss`.
            preference_prob: (T,) or one number, that the preferred one is really better.
            weight: (T,) how much each comparison counts in the mean.

        Returns:
            The loss, a scalar that carries gradient to `pi_logps`, and (B,) rewards.
        """
        losses, rewards = dpo_loss(
            pi_logps, ref_logps, yw_idxs, yl_idxs, self.beta, preference_prob
        )
        if weight is None:
            return losses.mean(), rewards
        return (losses * weight).sum() / weight.sum(), rewards

    #: what `fit` minimises: a class with another loss has to train by steps
    _loss_of_fit: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = compute_loss

    def train_step(self, batch: Batch) -> float:
        """One optimizer step on a batch, through `compute_loss`; returns the loss.

        Args:
            batch: groups, or the article's `(x, yw_idxs, yl_idxs)` with x a mapping of
                (B, L) tensors `input_ids`, `attention_mask` (1 for tokens that are there)
                and `completion_mask` (1 for tokens of the completion).

        Raises:
            DataError: the batch is not of that form, or a row is refused.
            NonFiniteError: the loss or gradient is not finite; nothing was changed.
            TrainingError: the initial weights are needed and gone, or there are several
                processes.
        """
        if self._learner.spread.readers > 1 or self._learner.spread.sharded:
            raise TrainingError(
                "train_step is for one process: batches of several would have to be cut alike",
                remedy="call fit, which every process does with the same data",
            )
        total = self._accumulate(batch)
        optimizer = self._step_optimizer()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = clip_grad_norm_(weights, self.recipe.max_grad_norm)
        if not (norm.isfinite() and total.isfinite()):
            optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                "the loss or gradient of this batch is not a finite number",
                value=float(total),
                remedy="look at the batch, or lower lr",
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    # -- the loop of `prefopt train` -------------------------------------------------------

    def fit(
        self, data: Data, eval_data: Data | None = None, *, progress: bool = False
    ) -> list[Record]:
        """Train for `epochs` on data, with the loop of `prefopt train` but no run folder.

        Args:
            data: path of a preference file, several, or an iterable of groups.
            eval_data: the same, to evaluate on at the end and every `eval_every` steps.
            progress: show a bar on stderr.

        Returns:
            The records that a run has in `metrics.jsonl`, in order.

        Raises:
            DataError, RecipeError, TrainingError: as `prefopt.train` does.
        """
        if type(self).compute_loss is not type(self)._loss_of_fit:
            raise RecipeError(
                "fit trains with a loss of its own and would ignore this class's compute_loss",
                field="compute_loss",
                value=type(self).__name__,
                remedy="call train_step for each batch, or add the loss as an objective",
            )
        check_evaluation(self.recipe, eval_data)
        learner, display = self._learner, Display(progress)
        train = self._prepare(data, training=True)
        parts = [train]
        if eval_data is not None:
            parts.append(self._prepare(eval_data, training=False))
        total = sum(step.comparisons for part in parts for step in part.steps)
        with display.bar("reference", total) as advance:
            score_reference(learner, parts, advance)
        job = make_job(learner, train, parts[1] if eval_data is not None else None)
        job.probe = make_probe(learner)
        history: list[Record] = []
        with display.bar("training", len(job.steps)) as advance:

            def record(metrics: Record) -> None:
                history.append(metrics)
                advance(metrics["kind"] == "train", note=note_of(metrics))

            job.record = record
            if not self._running:
                self._running, solved = first_running(learner, train)
                if solved is not None:
                    record(solved)
            self._touch()
            state = State(running=self._running)
            try:
                fit(job, state)
            finally:
                self._running = state.running
        return history

    def save(self, folder: str | Path) -> None:
        """Write the model (of an adapter, the adapter) and the tokenizer as `load_policy` reads.

        Raises:
            RunError: it cannot be written.
        """
        with atomic_folder(folder) as part:
            save_model(self.policy, part)

    # -- details ---------------------------------------------------------------------------

    def _prepare(self, data: Data, *, training: bool) -> Prepared:
        groups = groups_of(data, self.policy.tokenizer, self.recipe.on_error)
        learner = self._learner
        return prepare_data(
            learner.policy,
            self.recipe,
            learner.loss,
            groups,
            training=training,
            constraints=learner.constraints,
            columns=columns_for(learner) if training else None,
        )

    def _accumulate(self, batch: Batch) -> Tensor:
        """The loss of a batch; its gradient is added up over micro-batches."""
        reference = make_lasting(self._learner)
        total = torch.zeros((), device=self.policy.device)
        for groups, order, edges, share in self._pieces(batch):
            pi_logps = self._learner.scorer(groups)[order]
            ref_logps = reference(groups)[order]
            further = self._further(edges)
            loss, _ = self.compute_loss(
                pi_logps, ref_logps, edges.preferred, edges.dispreferred, **further
            )
            (loss * share).backward()
            total += loss.detach() * share
        return total

    def _pieces(
        self, batch: Batch
    ) -> Iterator[tuple[Sequence[TokenGroup], Tensor, Comparisons, float]]:
        """Micro-batches: groups, where each completion's score is among theirs, comparisons
        of the completions, and the share of the batch's weight that they have."""
        device = self.policy.device
        if isinstance(batch, tuple) and batch and isinstance(batch[0], Mapping):
            x, yw_idxs, yl_idxs, *probability = batch
            groups, order = groups_of_rows(x)
            like = torch.empty(len(order), device=device)
            edges = comparisons_of(like, yw_idxs, yl_idxs, *(probability or [None]))
            yield groups, order.to(device), edges, 1.0
            return
        data = self._prepare(batch, training=False)
        weight = sum(step.weight for step in data.steps)
        for step in data.steps:
            for positions in step.microbatches:
                part = data.examples.microbatch(step, positions, device)
                order = torch.arange(len(part.lengths), device=device)
                assert isinstance(part.judgements, Comparisons)
                share = float(part.judgements.weight.sum()) / weight
                yield part.groups, order, part.judgements, share

    def _further(self, edges: Comparisons) -> dict[str, Tensor]:
        """What `compute_loss` must know beyond the article's arguments, if anything."""
        further = {}
        if self._always_with_probability or bool((edges.probability != 1).any()):
            further["preference_prob"] = edges.probability
        if bool((edges.weight != 1).any()):
            further["weight"] = edges.weight
        return further

    def _step_optimizer(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            assert self.recipe.learning_rate is not None
            self._optimizer = make_optimizer(
                self.model.parameters(),
                learning_rate=self.recipe.learning_rate,
                weight_decay=self.recipe.weight_decay,
                choice=self.recipe.optimizer,
                seed=self.recipe.seed,
            )
        return self._optimizer

    def _touch(self) -> None:
        """From here on the policy is not what it started as: it cannot be its own reference."""
        reference = self._learner.reference
        if reference is not None and not reference.lasting:
            reference.score = None
