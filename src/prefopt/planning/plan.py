"""The plan of a training: what it needs, how long it takes, on which machine it fits.

Nothing is loaded but configs, tokenizer and data. The data is read and tokenised as training
will, into the same store on disk, so that it is done only once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, TypeAlias

from prefopt.constraints import Constraint, make_constraints
from prefopt.data.formats import read_groups
from prefopt.objectives.loss import Weighted
from prefopt.planning.machines import Machine, counted, named
from prefopt.planning.measuring import Measured, measure, resident, this_machine
from prefopt.planning.memory import Footprint, Memory, Strategy, per_device
from prefopt.planning.needs import Needs, Piece, find_needs
from prefopt.planning.standin import Outline, find_outline, stand_in
from prefopt.planning.work import (
    Amount,
    Seconds,
    amount_of,
    largest_piece,
    operations_of,
    seconds_of,
    steps_of,
)
from prefopt.recipe import Recipe, ResolvedRecipe
from prefopt.training.constrained import stages_of
from prefopt.training.examples import Prepared, prepare_data
from prefopt.training.prepare import Learner, settle
from prefopt.training.sources import load_sources

Loading: TypeAlias = Callable[[Mapping[str, Any]], ResolvedRecipe]

#: On a CPU the heap keeps what is freed (`engine/memory.py`) and cannot use all of it again:
#: bytes kept in vain for each byte of what comes and goes, which activations do. Measured on
#: recipes that are not those of docs/experiments.md (`benchmarks/plan.py --calibrate`): with all
#: weights trained 0.41 and 0.36 (micro-batches of 2048 and 8192 tokens), with a LoRA 1.14.
KEPT, KEPT_BESIDE_ADAPTER = 0.4, 1.15
#: a CUDA allocator rounds sizes and keeps pieces; not measured here
CACHING = 1.1
#: of a process, beside what it has when its data is prepared: kernels and buffers of libraries
LATER = 40 << 20


@dataclass(frozen=True)
class Fit:
    """A training on a machine.

    Attributes:
        machine: which, and how many devices.
        strategy: how the model is spread over them.
        phase: what the training does when it needs most.
        memory: of one device then.
        phases: total of every phase, in bytes.
        seconds: how long it takes.
        basis: what the time is made from.
    """

    machine: Machine
    strategy: Strategy
    phase: str
    memory: Memory
    phases: dict[str, int]
    seconds: Seconds
    basis: str

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.machine.memory


@dataclass
class Planner:
    """A recipe, and all that is known of its training without loading its model.

    Attributes:
        load: the recipe with further settings, as `load_recipe` gives it.
        resolved: the recipe, settled.
        loss: what it minimises.
        outline: of the model.
        reference: of the other model, where the recipe names one.
        data, evaluation: prepared.
        amount: how much there is to do.
        constraints: what else is kept.
        process: bytes of a process that has its libraries and its data, and no model.
        measured: three real steps, if they were asked for.
        notes: what is not in the numbers.
    """

    load: Loading
    resolved: ResolvedRecipe
    loss: Weighted
    outline: Outline
    reference: Outline | None
    data: Prepared
    evaluation: Prepared | None
    amount: Amount
    constraints: tuple[Constraint, ...] = ()
    process: int = 0
    measured: Measured | None = None
    notes: list[str] = field(default_factory=list)
    _known: dict[str, Needs] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    def changed(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with other settings, checked as if a user had written them.

        Raises:
            RecipeError: they do not go with the rest of it.
        """
        return settle(_first_stage(self.load(settings))[0])[0].recipe

    def needs(self, recipe: Recipe, *, readers: int, bf16: bool) -> Needs:
        """What a recipe needs that differs from this one only in what it does with memory."""
        piece = largest_piece(steps_of(self.data), readers, recipe.microbatch_tokens)
        key = f"{recipe.model_dump()} {piece.positions} {piece.alone} {bf16}"
        if key not in self._known:
            self._known[key] = find_needs(
                recipe, self.loss, self.outline, self.reference, self.data, piece,
                constraints=self.constraints, bf16=bf16,
            )  # fmt: skip
        return self._known[key]

    def fit(self, machine: Machine, recipe: Recipe | None = None) -> Fit:
        """The training on a machine, as the recipe says or as another one does.

        Raises:
            RecipeError, PolicyError: what training would raise.
        """
        recipe = recipe or self.recipe
        strategy: Strategy = recipe.parallel.strategy if machine.count > 1 else "alone"
        split = (recipe.parallel.tensor or min(8, machine.count)) if strategy == "tensor" else 1
        bf16 = _in_bf16(recipe, machine)
        needs = self.needs(recipe, readers=max(1, machine.count // split), bf16=bf16)
        phases = {
            name: self._whole(part, machine, recipe, strategy)
            for name, part in needs.phases(evaluated=self.evaluation is not None).items()
        }
        most = max(phases, key=lambda name: phases[name].total)
        seconds = seconds_of(needs, self.amount, machine, strategy=strategy, bf16=bf16)
        basis = _basis(machine)
        if self.measured is not None and machine.name == "this" and recipe is self.recipe:
            seconds, basis = self._as_measured(seconds), f"{self.measured.steps} measured steps"
        totals = {name: memory.total for name, memory in phases.items()}
        return Fit(machine, strategy, most, phases[most], totals, seconds, basis)

    def _whole(
        self, footprint: Footprint, machine: Machine, recipe: Recipe, strategy: Strategy
    ) -> Memory:
        """A phase on one device, with the process and what the allocator adds."""
        choice = recipe.parallel
        memory = per_device(
            footprint, strategy, machine.count, shards=choice.shards, tensor=choice.tensor,
            reshard=choice.reshard is not False,
        )  # fmt: skip
        moving = memory.gradients + memory.optimizer + memory.activations + memory.gathered
        if machine.kind == "cpu":
            adapted = recipe.adapter is not None or self.outline.adapter is not None
            kept = round((KEPT_BESIDE_ADAPTER if adapted else KEPT) * memory.activations)
            return replace(memory, process=self.process + LATER, allocator=kept)
        return replace(memory, allocator=round((CACHING - 1) * moving))

    def _as_measured(self, seconds: Seconds) -> Seconds:
        assert self.measured is not None
        each = self.measured.seconds_per_token
        training = each * self.amount.tokens
        slower = training / seconds.training
        known = self.measured.reference_per_token * self.amount.reference_tokens
        reference = known or seconds.reference * slower
        return Seconds(reference, training, seconds.evaluation * slower)


def make_planner(
    load: Loading,
    *,
    sample: int | None = None,
    measuring: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> Planner:
    """Read configs, tokenizer and data of a recipe.

    Args:
        load: `load_recipe` for this recipe, given further settings.
        sample: tokenise only so many groups, and count the rest.
        measuring: train three steps, to know how long one takes.
        advance: told how many rows were read.

    Raises:
        RecipeError, DataError, PolicyError: what training would raise.
    """
    notes: list[str] = []
    resolved, staged = _first_stage(load({}))
    if staged:
        notes.append("the training has two stages; this is the first, and the second needs as much")
    resolved, loss = settle(resolved)
    recipe = resolved.recipe
    outline = find_outline(recipe.model, loss.head)
    other = recipe.reference.name
    named_one = loss.needs_reference and not recipe.reference.own and other != "none"
    reference = find_outline(other) if named_one else None
    constraints = _constraints(recipe, notes)
    reader = stand_in(  # of the smallest model of its kind: what counts is its tokenizer
        outline.policy(outline.period), _reading(recipe), loss, reference=None,
        constraints=constraints,
    )  # fmt: skip
    evaluation = None
    if sample is None:
        data, _ = load_sources(reader, recipe.data, training=True, advance=advance)
        scale = 1.0
    else:
        data, scale = _sampled(reader, recipe, loss, sample)
        if scale > 1:
            notes.append(f"steps and tokens are those of {sample:,} groups, times {scale:.1f}")
    if recipe.eval_data is not None:
        evaluation, _ = load_sources(reader, recipe.eval_data, training=False)
    if recipe.probe is not None:
        notes.append("the probe's samples are not counted, in memory or in time")
    amount = amount_of(data, evaluation, eval_every=recipe.eval_every, scale=scale)
    import prefopt.training.train  # noqa: F401  what a training has imported takes memory too

    process = resident()
    measured = measure(recipe, loss, data, constraints) if measuring else None
    return Planner(
        load, resolved, loss, outline, reference, data, evaluation, amount, constraints, process,
        measured, notes,
    )  # fmt: skip


def _first_stage(resolved: ResolvedRecipe) -> tuple[ResolvedRecipe, bool]:
    """The first of two trainings, where a constraint makes two; whether it does."""
    stages = stages_of(resolved)
    return (resolved, False) if stages is None else (stages[0], True)


def _reading(recipe: Recipe) -> Recipe:
    """The recipe of a learner that only reads data."""
    plain: dict[str, Any] = {"adapter": None, "quantize": None, "gradient_checkpointing": False}
    return recipe.model_copy(update={**plain, "reference": type(recipe.reference)()})


def _sampled(
    learner: Learner, recipe: Recipe, loss: Weighted, count: int
) -> tuple[Prepared, float]:
    """The first groups of every source, and how many times as many there are."""
    first, total = [], 0
    for source in recipe.data:
        reader = read_groups(
            source.path, format=source.format, on_error=recipe.on_error, source=source.name
        )
        groups = iter(reader)
        kept = list(islice(groups, count))
        first += kept
        total += len(kept) + sum(1 for _ in groups)
    shares = {str(s.name): s.share for s in recipe.data if s.share is not None}
    # A sample of a plan that is cut short would not be a sample of that plan.
    data = prepare_data(
        learner.policy, recipe, loss, first, training=True, shares=shares or None,
        constraints=learner.constraints,
    )  # fmt: skip
    scale = total / len(first)
    if recipe.max_steps is not None:
        scale = min(scale, recipe.max_steps / len(data.steps))
    return data, scale


def _constraints(recipe: Recipe, notes: list[str]) -> tuple[Constraint, ...]:
    """The constraints, with no cost where a model would have to be loaded to know it."""
    choices = []
    for choice in recipe.constraints:
        if choice.classifier is not None or choice.reward_model is not None:
            notes.append(f"the model that measures '{choice.name}' is not counted")
            without = {
                "classifier": None,
                "reward_model": None,
                "label": None,
                "patterns": ["(?!)"],
            }
            choice = choice.model_copy(update=without)
        choices.append(choice)
    return tuple(make_constraints(choices, device="cpu"))


def _in_bf16(recipe: Recipe, machine: Machine) -> bool:
    if recipe.weights == "bf16" or recipe.precision == "bf16":
        return True
    return recipe.precision == "auto" and machine.bf16


def _basis(machine: Machine) -> str:
    share = f"{100 * machine.share:.0f} % of {machine.rate / 1e12:.3g} TFLOP/s"
    return f"{share} measured here" if machine.measured else f"{share} as its maker says"


def find_machines(planner: Planner, names: Sequence[str]) -> list[Machine]:
    """The machines that were asked for; `this` is measured.

    Raises:
        RecipeError: there is no such machine.
    """
    config = planner.outline.config.get_text_config()
    found = []
    for name in names or ("this",):
        kind, count = counted(name)
        if kind != "this":
            found.append(named(name))
            continue
        one = this_machine(
            planner.recipe, width=config.hidden_size, tokens=planner.recipe.microbatch_tokens
        )
        found.append(replace(one, count=count))
    return found


def to_dict(planner: Planner, fits: Sequence[tuple[Fit, Any]]) -> dict[str, Any]:
    """The object that `prefopt plan --json` prints; sizes in bytes, times in seconds."""
    recipe = planner.recipe
    first, _ = fits[0]
    needs = planner.needs(recipe, readers=1, bf16=_in_bf16(recipe, first.machine))
    piece: Piece = needs.largest
    return {
        "model": {"name": planner.outline.name, **asdict(needs.parameters)},
        "data": planner.data.counts,
        "work": {**asdict(planner.amount), "operations": operations_of(needs, planner.amount)},
        "microbatch": {
            "tokens": piece.tokens,
            "groups": len(piece.positions),
            "limit": recipe.microbatch_tokens,
        },
        "disk": disk(planner, needs),
        "machines": [_fit_dict(fit, change) for fit, change in fits],
        "notes": planner.notes,
    }


def disk(planner: Planner, needs: Needs) -> dict[str, int]:
    """Bytes on disk: tokens and reference scores in the cache, one checkpoint, the model."""
    tokens, completions = planner.data.counts["tokens"], planner.data.counts["completions"]
    trained = needs.gradients
    whole = trained if needs.parameters.parts.get("adapter") else needs.weights
    twice = 2  # a checkpoint is written before the one before it is removed
    return {
        "tokens": 4 * tokens,
        "scores": _ROW * completions if needs.cached else 0,
        "checkpoints": twice * (trained + needs.update.state),
        "model": whole,
    }


#: bytes of one score in the cache: a key of 24, a number of 8, and what SQLite needs for both
_ROW = 40


def _fit_dict(fit: Fit, change: Any) -> dict[str, Any]:
    machine = fit.machine
    return {
        "name": machine.name,
        "devices": machine.count,
        "strategy": fit.strategy,
        "fits": fit.fits,
        "memory": {
            "total": fit.memory.total,
            "available": machine.memory,
            "phase": fit.phase,
            "parts": fit.memory.parts(),
            "phases": fit.phases,
        },
        "seconds": {**asdict(fit.seconds), "total": fit.seconds.total, "basis": fit.basis},
        "change": change.to_dict() if change is not None else None,
    }
