"""A whole training: from a recipe to a run folder.

Policy and data are loaded and checked before anything is written. Then the reference is
scored, the loop runs, the model is saved and the manifest is written last, which is what
makes the run finished. The same command continues a run that was stopped anywhere, from the
last checkpoint and to the same weights; a finished one is not done again. A page about it
is another stage: `prefopt.build_report`.

Of several processes the main one alone writes: it holds the run, records, and speaks. What
it finds in the folder the others hear from it, and what is wrong with it as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prefopt import __version__
from prefopt.constraints import make_constraints
from prefopt.errors import NonFiniteError, RecipeError, RunError
from prefopt.policies.fingerprint import fingerprint_model
from prefopt.recipe import ResolvedRecipe
from prefopt.runs import Run, atomic_folder, hardware, versions
from prefopt.training import distributed
from prefopt.training.checkpoint import Checkpoints, save_model, whole_weights
from prefopt.training.constrained import stages_of
from prefopt.training.diagnostics import Diagnostic, diagnose, label_balance
from prefopt.training.display import Display, note_of
from prefopt.training.examples import Prepared
from prefopt.training.interrupts import Stopped
from prefopt.training.loop import Job, Record, State, fit
from prefopt.training.manifest import command, engine, now, processes, result_of, who
from prefopt.training.prepare import (
    Learner,
    load_learner,
    make_job,
    make_learner,
    score_reference,
    settle,
)
from prefopt.training.probing import (
    find_prompts,
    first_running,
    make_probe,
    make_reward_of,
)
from prefopt.training.sources import check_identity, digest, load_sources
from prefopt.training.track import check_tracker, tracker


@dataclass(frozen=True)
class TrainResult:
    """What a training came to.

    Attributes:
        run: folder of the run.
        steps: optimizer steps done.
        final_loss: mean over the comparisons of the last ten steps.
        accuracy: the same; None for objectives that compare nothing.
        skipped: rows left out, by reason.
        stopped: why it ended early, if it did.
        eval: metrics of the last evaluation, if there is evaluation data.
        probe: the last probe of the policy's own samples, if there is one.
    """

    run: str
    steps: int
    final_loss: float
    accuracy: float | None
    skipped: dict[str, int]
    stopped: str | None = None
    eval: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that `prefopt train --json` prints."""
        return asdict(self)


def train(resolved: ResolvedRecipe, *, progress: bool = True) -> TrainResult:
    """Train as a recipe says, or go on with the run in its folder.

    Args:
        resolved: what `load_recipe` returns.
        progress: show settings, progress and findings on stderr.

    Raises:
        RecipeError, DataError, PolicyError, MissingExtraError: wrong input or setting;
            nothing was written.
        RunError: the run folder cannot be used, or holds another training.
        TrainingError: it cannot go on; the last checkpoint is as it was.
        Stopped: Ctrl-C or SIGTERM, after a checkpoint was saved; a KeyboardInterrupt.
    """
    with distributed.start():
        display = Display(progress and distributed.main())
        stages = stages_of(resolved)
        if stages is None:
            return _train(resolved, display)
        before, after = stages
        # A cost that cannot be had is told now, not after a whole training.
        make_constraints(after.recipe.constraints, device=after.recipe.device)
        _train(before, display)
        return _train(after, display)


def _train(resolved: ResolvedRecipe, display: Display) -> TrainResult:
    """One training, from its recipe to its finished folder."""
    resolved, loss = settle(resolved)
    recipe, run = resolved.recipe, Run(resolved.recipe.out)
    result = distributed.by_main(lambda: _done_before(run, resolved))
    if result is not None:
        display.note("this training was finished before: nothing is done again")
        return result
    check_tracker(recipe.track)
    distributed.check_device(recipe.device)
    display.recipe(resolved)
    policy = load_learner(recipe, loss.head)
    constraints = make_constraints(recipe.constraints, device=recipe.device)
    learner = make_learner(policy, recipe, loss, constraints=constraints)
    learner.reward, learner.prompts = make_reward_of(recipe), find_prompts(learner)
    evaluation, eval_files = None, None
    with display.bar("reading", None) as advance:
        data, files = load_sources(learner, recipe.data, training=True, advance=advance)
        if recipe.eval_data is not None:
            evaluation, eval_files = load_sources(
                learner, recipe.eval_data, training=False, advance=advance
            )
    display.data("data", data.counts)
    if evaluation is not None:
        display.data("eval_data", evaluation.counts)
    with _held(run):
        # Another process may have finished it in the meantime.
        if distributed.by_main(lambda: run.begin(resolved) and run.finished):
            return distributed.by_main(lambda: _finished(run))
        distributed.agree("policy", learner.fingerprint)
        distributed.agree("data", [part and part.fingerprint for part in (data, evaluation)])
        started = distributed.by_main(lambda: check_identity(run, learner, data, evaluation))
        early = _label_balance(learner, data)
        display.findings(early)
        state = _learn(run, resolved, learner, data, evaluation, display)
        diagnostics = distributed.by_main(lambda: _look_back(run, resolved))
        display.findings(diagnostics)
        manifest = {
            "kind": "train",
            "prefopt": __version__,
            "command": command(run),
            "versions": versions(),
            "hardware": {**hardware(), "device": str(policy.device)},
            "processes": processes(),
            "started": started,
            "finished": now(),
            "seconds": state.seconds,
            **who(learner),
            "data": {
                "train": {"files": files, **data.counts},
                "eval": evaluation and {"files": eval_files, **evaluation.counts},
            },
            "engine": state.engine,
            "diagnostics": [diagnostic.to_dict() for diagnostic in (*early, *diagnostics)],
            "result": distributed.by_main(lambda: result_of(run.read_metrics(), state)),
        }
        return _finish(run, learner, manifest)


def _done_before(run: Run, resolved: ResolvedRecipe) -> TrainResult | None:
    """The result of a run that is finished; None of one that is not, or starts over."""
    if not run.finished or resolved.recipe.resume != "auto":
        return None
    with run.locked():
        run.begin(resolved)
        return _finished(run)


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """The run's lock, held by the main process for all."""
    with ExitStack() as stack, distributed.translated(lambda: run.last_checkpoint):
        distributed.by_main(lambda: stack.enter_context(run.locked()))
        yield


def _learn(
    run: Run,
    resolved: ResolvedRecipe,
    learner: Learner,
    data: Prepared,
    evaluation: Prepared | None,
    display: Display,
) -> State:
    """Score the reference, go on from the last checkpoint, train to the end."""
    parts = [data] if evaluation is None else [data, evaluation]
    if learner.reference is not None and resolved.recipe.reference_scores == "cache":
        total = sum(part.steps.judgements for part in parts)
        with display.bar("reference", total) as advance:
            score_reference(learner, parts, advance)
    probe = make_probe(learner)  # which keeps a reference, if there is one
    if learner.reference is not None and resolved.recipe.reference_scores == "cache" and not probe:
        learner.reference.score = None  # with it goes the model, unless it is the policy
    job = make_job(learner, data, evaluation)
    job.probe = probe
    moving = learner.mover.model if learner.mover is not None else None
    checkpoints = Checkpoints(run.checkpoints, learner.policy.model, job.optimizer, moving)
    state = _restore(run, checkpoints, job, learner)
    if state.step:
        display.note(f"going on after step {state.step} of {len(job.steps)}")
    solved = None if state.step else _start(run, learner, data, state)

    writes = distributed.main()
    with (
        tracker(resolved.recipe.track if writes else "none", run.folder, resolved.values()) as log,
        display.bar("training", len(job.steps), done=state.step) as advance,
    ):

        def record(metrics: Record) -> None:
            if writes:
                run.append_metrics(metrics)
            log(metrics)
            advance(metrics["kind"] == "train", note=note_of(metrics))

        def save(state: State) -> Path:
            state.engine = engine(learner)
            return checkpoints.save(state, metrics=distributed.broadcast(run.metrics_size()))

        job.record, job.save = record, save
        if solved is not None:
            record(solved)
        try:
            fit(job, state)
        except (NonFiniteError, Stopped):  # which all processes do
            checkpoints.finish()
            raise
        if job.last_checkpoint is None or int(job.last_checkpoint.name[5:]) != state.step:
            save(state)
        checkpoints.finish()
    state.engine = engine(learner)
    return state


def _look_back(run: Run, resolved: ResolvedRecipe) -> list[Diagnostic]:
    """What the metrics of the whole training say about it."""
    objective = resolved.recipe.objective
    flipped = objective.options["label_smoothing"] if objective.name == "robust_dpo" else 0.0
    return diagnose(run.read_metrics(), flipped=flipped)


def _start(run: Run, learner: Learner, data: Prepared, state: State) -> Record | None:
    """What a loss carries on, before the first step; the record of how multipliers were solved.

    Raises:
        RecipeError: a limit that no multiplier reaches; what the run wrote is gone again.
    """
    try:
        state.running, solved = first_running(learner, data)
    except RecipeError:
        distributed.by_main(run.discard)
        raise
    return solved


def _label_balance(learner: Learner, data: Prepared) -> list[Diagnostic]:
    """Whether the weights of the two kinds of labels fit how many of each there are."""
    options = learner.recipe.objective.options
    if "desirable_weight" not in options:
        return []
    undesirable, desirable = data.labels
    weights = options["desirable_weight"], options["undesirable_weight"]
    found = label_balance(desirable, undesirable, *weights)
    return [] if found is None else [found]


def _restore(run: Run, checkpoints: Checkpoints, job: Job, learner: Learner) -> State:
    """The state of the newest checkpoint, or of the beginning; metrics are cut to fit it."""
    path = distributed.by_main(checkpoints.latest)
    if path is None:
        distributed.by_main(lambda: run.truncate_metrics(0))
        return State()
    state, further = checkpoints.load(path)
    distributed.by_main(lambda: run.truncate_metrics(further["metrics"]))
    job.last_checkpoint = path
    # Trained weights might pass a check that the first ones failed: it is not made again.
    scorer = learner.scorer
    scorer.sharing, scorer.reason = state.engine["sharing"], state.engine["reason"]
    scorer.difference = state.engine["difference"]
    scorer.kernels.restore(state.engine["attention"])
    return state


def _finish(run: Run, learner: Learner, manifest: dict[str, Any]) -> TrainResult:
    """Save the model and write the manifest last."""
    policy = learner.policy
    weights = whole_weights(policy.model)  # which all processes put together

    def write() -> None:
        with atomic_folder(run.model) as part:
            save_model(policy, part, weights)

    distributed.by_main(write)
    manifest["result"]["fingerprint"] = fingerprint_model(policy.model)
    distributed.by_main(lambda: run.write_json(run.manifest, manifest))
    return distributed.by_main(lambda: _finished(run))


def _finished(run: Run) -> TrainResult:
    """The result of a finished run, from its manifest; clears away what is not needed any more.

    Raises:
        RunError: a data file has changed since.
    """
    manifest = run.read_json(run.manifest)
    for part in manifest["data"].values():
        for file in part["files"] if part else ():
            if digest(file["path"]) not in (file["sha256"], None):
                raise RunError(
                    "the folder holds a finished run, and its data has changed since",
                    file=file["path"],
                    field="out",
                    remedy="choose another --out, or set resume: never to start it over",
                )
    _sweep(run)
    result = manifest["result"]
    return TrainResult(
        run=str(run.folder),
        steps=result["steps"],
        final_loss=result["final_loss"],
        accuracy=result["accuracy"],
        skipped=manifest["data"]["train"]["skipped"],
        stopped=result["stopped"],
        eval=result["eval"],
        probe=result.get("probe"),
    )


def _sweep(run: Run) -> None:
    """Remove checkpoints, and what a killed process left half-written."""
    folders, patterns = (run.folder, run.checkpoints), ("step-*", ".*.part", ".*.old")
    for path in chain.from_iterable(f.glob(p) for f in folders for p in patterns):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
