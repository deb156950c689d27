"""The recipe of each round's training: from which policy, on what, and close to what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError
from prefopt.recipe import load_recipe
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.settings import Rounds, training


@dataclass(frozen=True)
class Teaching:
    """How rounds train.

    Attributes:
        rounds: the file.
        adapter: whether the first round makes an adapter, which the later ones may train on.
        reference: whether anything reads a reference.
    """

    rounds: Rounds
    adapter: bool
    reference: bool

    def recipe(
        self, ledger: Ledger, first: str, number: int, data: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The settings of a round's training, counted from 1.

        Args:
            ledger: of the folder.
            first: the first policy.
            number: of the round.
            data: what it trains on.
        """
        file = self.rounds.file
        anew = number == 1 or file.start == "initial"
        before = str(ledger.stage_folder(number - 1, "train") / "model")
        settings = training(
            file,
            first if anew else before,
            data,
            str(ledger.stage_folder(number, "train")),
            self._reference(number, first, before) if self.reference else "initial",
        )
        if anew:
            return settings
        # The adapter that is there is trained on.
        return {key: value for key, value in settings.items() if not _is(key, "adapter")}

    def _reference(self, number: int, first: str, before: str) -> str:
        """The `reference` of a round's recipe: a word where that saves a second copy."""
        file = self.rounds.file
        if number == 1:
            return "initial"
        if file.start == "initial":
            return "initial" if file.reference == "initial" else before
        if file.reference == "previous":
            return "initial"
        return "base" if self.adapter else first


def teaching(rounds: Rounds) -> Teaching:
    """How rounds train, refusing now what training would refuse after an hour of sampling.

    Raises:
        RecipeError: the settings of the training, or of the reference, cannot be.
    """
    from prefopt.training.prepare import settle

    try:
        settings = training(rounds.file, "model", ["data"], "out", "initial")
        settled, loss = settle(load_recipe(None, settings, origin="train"))
    except RecipeError as error:
        name = f"train.{error.field}"
        error.file, error.row, error.field = rounds.path, rounds.row(name), name
        raise
    recipe = settled.recipe
    if loss.head == "reward":
        raise rounds.refuse(
            "trains a reward model, and a round wants a policy", "train.objective",
            value=recipe.objective.name,
            remedy="train it before with prefopt train, and set judge: reward:FOLDER",
        )  # fmt: skip
    read = loss.needs_reference or any(one.mode == "penalty" for one in recipe.constraints)
    if not read and "reference" in rounds.file.model_fields_set:
        raise rounds.refuse(
            f"has no effect: objective '{recipe.objective.name}' reads no reference", "reference",
            value=rounds.file.reference, remedy="leave it out",
        )  # fmt: skip
    return Teaching(rounds, adapter=recipe.adapter is not None, reference=read)


def data_of(ledger: Ledger, number: int) -> list[dict[str, Any]]:
    """What a round trains on: its own comparisons, or those of all rounds so far."""
    first = 1 if ledger.rounds.file.data == "expanded" else number
    return [
        {"path": str(pairs_of(ledger, past)), "name": f"round-{past}"}
        for past in range(first, number + 1)
    ]


def pairs_of(ledger: Ledger, number: int) -> Path:
    """The comparisons of a round."""
    return ledger.stage_folder(number, "judge") / "pairs.jsonl"


def _is(key: str, section: str) -> bool:
    return key.partition(".")[0] == section
