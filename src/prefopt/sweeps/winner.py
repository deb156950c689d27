"""The winner alone on data that no trial saw.

The best of many measured values is too good: it was chosen for its luck too. Only data that
took no part in the choice says what the winner is worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.errors import TrainingError
from prefopt.runs import fingerprint_file
from prefopt.sweeps import running
from prefopt.sweeps.choosing import Mean, Standing
from prefopt.sweeps.ledger import Ledger
from prefopt.sweeps.schedule import POLL
from prefopt.sweeps.trials import Trial

#: what is reported of each kind of measurement, and how it is called
SCORED: tuple[str, ...] = ("accuracy", "margin")
SAMPLED: tuple[str, ...] = ("reward_after", "reward_before", "win_rate", "kl")


def measure_winner(
    ledger: Ledger, standing: Standing, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every seed of the winner on `test_data`; what was measured before is kept.

    Comparisons are scored where the goal is one of the evaluation data; where it is one of
    the policy's samples, the prompts are answered by policy and reference.

    Returns:
        `data`, `trials`, and by name of the measure `mean`, `spread` and `seeds`.

    Raises:
        TrainingError: it could not be measured.
    """
    data = str(ledger.sweep.file.test_data)
    about = {
        "data": data,
        "sha256": fingerprint_file(data) if Path(data).is_file() else None,
        "trials": [result.trial.name for result in standing.results],
        "goal": ledger.sweep.file.goal.name,
    }
    if ledger.test is not None and all(ledger.test.get(k) == v for k, v in about.items()):
        return dict(ledger.test)
    say(f"measuring the winner on {data}")
    scored = ledger.sweep.file.goal.name.startswith("eval.")
    make, names = (_score, SCORED) if scored else (_judge, SAMPLED)
    documents = [
        _done(ledger, result.trial, make(ledger, result.trial, data)) for result in standing.results
    ]
    wanted = ledger.sweep.file.goal.measure  # comes first, however it is called here
    names = tuple(sorted(names, key=lambda name: name not in (wanted, f"{wanted}_after")))
    means = {name: Mean.of([document[name] for document in documents]) for name in names}
    return {**about, "measures": {name: mean and mean.to_dict() for name, mean in means.items()}}


def _score(ledger: Ledger, trial: Trial, data: str) -> list[str]:
    recipe = trial.resolved.recipe
    reference = recipe.model if recipe.reference.own else recipe.reference.name
    words = [
        "prefopt", "score", str(trial.run.folder), "--reference", reference, "--data", data,
        "--too-long", recipe.too_long, "--on-error", recipe.on_error,
        "--microbatch-tokens", str(recipe.microbatch_tokens), "--json",
    ]  # fmt: skip
    if "beta" in recipe.objective.options:
        words += ["--beta", str(recipe.objective.options["beta"])]
    if recipe.max_length is not None:
        words += ["--max-length", str(recipe.max_length)]
    return words


def _judge(ledger: Ledger, trial: Trial, data: str) -> list[str]:
    answers = str(ledger.folder / "answers")
    run = str(trial.run.folder)
    return ["prefopt.sweeps.judging", run, "--answers", answers, "--prompts", data]


def _done(ledger: Ledger, trial: Trial, words: list[str]) -> dict[str, Any]:
    """Run one command to its end, on the first slot."""
    arguments, environment = running.placed(ledger.sweep.slots[0], 1)
    process = running.start([*words, *arguments], ledger.log_of(trial), environment)
    try:
        while (ended := process.poll()) is None:
            time.sleep(POLL)
    except BaseException:
        process.kill()
        raise
    if ended.interrupted:
        raise KeyboardInterrupt
    if ended.problem is not None:
        raise TrainingError(
            f"the winner could not be measured on test_data: {ended.problem}",
            file=str(ledger.log_of(trial)),
            field="test_data",
            value=ledger.sweep.file.test_data,
            remedy="mend it and run the same command again: no trial is done again",
        )
    return dict(ended.document)
