"""What all rounds stand on: the first policy, each round's prompts, and those to measure on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prefopt.data.acquisition.questions import drawn
from prefopt.data.formats import read_groups
from prefopt.data.prompts import read_prompts
from prefopt.data.worlds import ReviewWorld
from prefopt.records import Group, Prompt, prompt_key
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.settings import Rounds


@dataclass(frozen=True)
class Ground:
    """What all rounds stand on.

    Attributes:
        model: the first policy.
        prompts: of each round, which have none in common.
        evaluation: prompts that no round trains on.
        labels: comparisons by people, which tell how often a judge is right; or none.
    """

    model: str
    prompts: Sequence[Sequence[Prompt]]
    evaluation: Sequence[Prompt]
    labels: Sequence[Group] = ()


def prepare(ledger: Ledger, *, progress: bool) -> Ground:
    """The ground of a loop; a generated world is made if it is not there.

    Which prompts are whose is written down, and holds once they were answered: a file of prompts
    that has changed meanwhile gives new rounds other prompts, and those before keep theirs.

    Raises:
        RecipeError: there are too few prompts, or nothing to be right about.
        DataError: a file cannot be read.
    """
    file = ledger.rounds.file
    labels = _labels(ledger.rounds)
    known: dict[int, Sequence[Prompt]] = {**ledger.prompts()}
    missing = [n for n in range(file.rounds + 1) if n not in known]
    if missing:
        known |= _drawn(ledger.rounds, known, missing)
    if file.world is not None:
        model = _model_of_world(ledger, progress)
    else:
        assert file.model is not None
        model = file.model
    for number in missing:
        ledger.keep_prompts(number, known[number])
    rounds = [known[number] for number in range(1, file.rounds + 1)]
    return Ground(model, rounds, known[0], labels)


def _drawn(
    rounds: Rounds, known: Mapping[int, Sequence[Prompt]], missing: Sequence[int]
) -> dict[int, Sequence[Prompt]]:
    """Prompts of the rounds that have none yet; 0 stands for those that are measured on."""
    file = rounds.file
    measured, order = known.get(0), _order(rounds)
    if measured is None and file.evaluate.prompts is not None:
        measured = _different(read_prompts([file.evaluate.prompts]), file.seed)
        measured = measured[: file.evaluate.count]
    elif measured is None and file.world is not None:
        measured = ReviewWorld().prompts(file.evaluate.count, file.seed, split="test")
    elif measured is None:
        measured, order = order[: file.evaluate.count], order[file.evaluate.count :]
    found: dict[int, Sequence[Prompt]] = {0: measured}
    used = {prompt_key(prompt) for own in (*known.values(), measured) for prompt in own}
    free = [prompt for prompt in order if prompt_key(prompt) not in used]
    size, wanted = file.prompts_per_round, [number for number in missing if number > 0]
    _check_enough(rounds, len(free), len(measured), len(wanted))
    for place, number in enumerate(wanted):
        found[number] = free[place * size : (place + 1) * size]
    return found


def _order(rounds: Rounds) -> list[Prompt]:
    """All prompts there are for rounds, in the order in which they are used."""
    file = rounds.file
    if file.world is not None:
        return list(ReviewWorld().prompts(file.rounds * file.prompts_per_round, file.seed))
    assert file.prompts is not None
    return _different(read_prompts([file.prompts]), file.seed)


def _labels(rounds: Rounds) -> list[Group]:
    name = rounds.file.evaluate.labels
    if name is None:
        return []
    groups = list(read_groups([name]))
    if any(edge.probability != 0.5 for group in groups for edge in group.comparisons):
        return groups
    raise rounds.refuse(
        "no comparison there prefers anything", "evaluate.labels", value=name,
        remedy="give preferences; votes become comparisons by prefopt aggregate",
    )  # fmt: skip


def _model_of_world(ledger: Ledger, progress: bool) -> str:
    from prefopt.demo import FULL, QUICK, Demo

    file = ledger.rounds.file
    assert file.world is not None
    scale = {"quick": QUICK, "full": FULL}[file.world.size]
    demo = Demo(ledger.folder / "world", scale, file.seed, progress)
    demo.check_folder()
    demo.make_world()
    demo.fine_tune()
    return str(demo.sft.model)


def _different(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """Each prompt once, in an order that seed and content alone decide."""
    known = {prompt_key(prompt): prompt for prompt in prompts}
    return [known[key] for key in sorted(known, key=lambda key: drawn(key, seed))]


def _check_enough(rounds: Rounds, have: int, measured: int, wanted: int) -> None:
    size = rounds.file.prompts_per_round
    if measured < 2:
        raise rounds.refuse(
            "a policy is measured on at least 2 prompts", "evaluate.count", value=measured,
            remedy="raise it, or give more evaluate.prompts",
        )  # fmt: skip
    if have >= wanted * size:
        return
    raise rounds.refuse(
        f"{wanted} rounds of {size:,} prompts want {wanted * size:,} different ones beside "
        f"{measured:,} to measure on, and there are {have:,}",
        "prompts",
        value=rounds.file.prompts,
        remedy="give more prompts, or lower rounds, prompts_per_round or evaluate.count",
    )
