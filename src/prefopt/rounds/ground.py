"""What all rounds stand on: the first policy, each round's prompts, and those to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.data.acquisition.questions import drawn
from prefopt.data.prompts import read_prompts
from prefopt.data.worlds import ReviewWorld
from prefopt.records import Prompt, prompt_key
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.settings import Rounds


@dataclass(frozen=True)
class Ground:
    """What all rounds stand on.

    Attributes:
        model: the first policy.
        prompts: of the rounds, one round after the other.
        evaluation: prompts that no round trains on.
        overlap: prompts that were left out because they are among those of the evaluation.
    """

    model: str
    prompts: Sequence[Prompt]
    evaluation: Sequence[Prompt]
    overlap: int = 0


def prepare(ledger: Ledger, *, progress: bool) -> Ground:
    """The ground of a loop; a generated world is made if it is not there.

    Raises:
        RecipeError: there are too few prompts.
        DataError: a file of prompts cannot be read.
    """
    file = ledger.rounds.file
    if file.world is not None:
        return _world(ledger, progress)
    assert file.model is not None and file.prompts is not None
    order = _different(list(read_prompts([file.prompts])), file.seed)
    if file.evaluate.prompts is not None:
        measured = _different(list(read_prompts([file.evaluate.prompts])), file.seed)
        measured = measured[: file.evaluate.count]
    else:
        measured, order = order[: file.evaluate.count], order[file.evaluate.count :]
    kept = {prompt_key(prompt) for prompt in measured}
    apart = [prompt for prompt in order if prompt_key(prompt) not in kept]
    _check_enough(ledger.rounds, len(apart), len(measured))
    return Ground(file.model, apart, measured, overlap=len(order) - len(apart))


def prompts_of(ground: Ground, rounds: Rounds, number: int) -> Sequence[Prompt]:
    """The prompts of one round, counted from 1: no two rounds have one in common."""
    size = rounds.file.prompts_per_round
    return ground.prompts[(number - 1) * size : number * size]


def _world(ledger: Ledger, progress: bool) -> Ground:
    from prefopt.demo import FULL, QUICK, Demo

    file = ledger.rounds.file
    assert file.world is not None
    scale = {"quick": QUICK, "full": FULL}[file.world.size]
    demo = Demo(ledger.folder / "world", scale, file.seed, progress)
    demo.check_folder()
    demo.make_world()
    demo.fine_tune()
    world = ReviewWorld()
    wanted = file.rounds * file.prompts_per_round
    return Ground(
        str(demo.sft.model),
        world.prompts(wanted, file.seed, split="train"),
        world.prompts(file.evaluate.count, file.seed, split="test"),
    )


def _different(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Each prompt once, in an order that seed and content alone decide."""
    known = {prompt_key(prompt): prompt for prompt in prompts}
    return [known[key] for key in sorted(known, key=lambda key: drawn(key, seed))]


def _check_enough(rounds: Rounds, have: int, measured: int) -> None:
    file = rounds.file
    wanted = file.rounds * file.prompts_per_round
    if have >= wanted and measured >= 2:
        return
    raise rounds.refuse(
        f"{file.rounds} rounds of {file.prompts_per_round:,} prompts want {wanted:,} different "
        f"ones beside {measured:,} to measure on, and there are {have:,}",
        "prompts",
        value=file.prompts,
        remedy="give more prompts, or lower rounds, prompts_per_round or evaluate.count",
    )
