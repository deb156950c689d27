"""A constitution: principles in a YAML file, by which answers are revised, and judged.

    principles:
      - name: no-insults
        critique: Point out every insult in the answer.
        revision: Write the answer again without insults.
        question: Which answer insults nobody?    # for a judge; by default the revision
        weight: 2                                 # how often it is drawn, how much it counts
        judge: pattern:(?i)idiot                  # who judges by it, if not the judge of all
    instructions: reviser                         # a file with what a model is told
    examples:                                     # shown to the model before its own answer
      - {prompt: …, completion: …, critique: …, revision: …}

Bai et al. 2022 (Constitutional AI, arXiv:2212.08073): a principle is drawn for each round, the
answer is criticised by it and revised, and the revision is preferred to the answer.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from prefopt.errors import RecipeError
from prefopt.judges.settings import Place, Spec
from prefopt.recipe.refusals import explain
from prefopt.recipe.sections import Strict, Text
from prefopt.recipe.text import read
from prefopt.records import Prompt, prompt_key


class Principle(Strict):
    """One principle."""

    name: Text = Field(description="its name, in statistics and with every pair")
    critique: Text = Field(description="what to look for in an answer, asked of a critic")
    revision: Text = Field(description="how to write the answer again, asked of a reviser")
    question: Text | None = Field(
        default=None, description="what a judge of two answers is asked; by default the revision"
    )
    weight: float = Field(
        default=1.0, gt=0, description="how often it is drawn, and how much its verdict counts"
    )
    judge: Spec | None = Field(
        default=None,
        description="who judges by it, such as pattern:REGEX; by default the judge of all",
        json_schema_extra={"allowed": "a judge: one word, or a mapping with kind"},
    )


class Example(Strict):
    """An answer with its critique and its revision, as a model is to write them."""

    prompt: Text = Field(description="what was asked")
    completion: Text = Field(description="the answer")
    critique: Text = Field(description="what a critic says of it")
    revision: Text = Field(description="the answer as it should be")


class Constitution(Strict):
    """Principles, and what a model is told with them."""

    principles: Annotated[list[Principle], Field(min_length=1)] = Field(
        description="the principles", json_schema_extra={"allowed": "a list of principles"}
    )
    instructions: Place = Field(
        default="reviser", description="file with the templates critique and revision"
    )
    examples: list[Example] = Field(
        default=[],
        description="shown to a model before the answer that it is to revise",
        json_schema_extra={"allowed": "a list of prompt, completion, critique and revision"},
    )

    def identity(self) -> Mapping[str, Any]:
        """What it says, wherever it stands."""
        return self.model_dump(exclude={"instructions"})

    def drawn(self, prompt: Prompt, answer: str, rounds: int, seed: int) -> list[Principle]:
        """A principle for each round, by the seed and the texts alone.

        Drawn by weight, and none for a second time before all have had their turn.
        """
        content = prompt_key(prompt) + answer.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        rng = random.Random(f"principles {seed} {digest}")
        chosen: list[Principle] = []
        left: list[Principle] = []
        for _ in range(rounds):
            left = left or list(self.principles)
            (one,) = rng.choices(left, [principle.weight for principle in left])
            left.remove(one)
            chosen.append(one)
        return chosen


def read_constitution(path: str | Path) -> Constitution:
    """A constitution from its file.

    Raises:
        RecipeError: there is no such file, or something in it is missing, unknown or wrong; with
            the row and the setting.
    """
    if not Path(path).is_file():
        raise RecipeError(
            "there is no such constitution",
            field="constitution",
            value=str(path),
            remedy="give a YAML file with principles, each with name, critique and revision",
        )
    try:
        document, rows = read(path)
    except RecipeError as error:
        error.remedy = "a constitution is a YAML file; put texts with : or ? in them into quotes"
        raise
    try:
        found = Constitution.model_validate(document, context={"folder": Path(path).parent})
    except ValidationError as error:
        refusal = explain(error, Constitution, document, {}, path, rows)
        if refusal.remedy and refusal.remedy.startswith("set "):
            refusal.remedy = f"set {refusal.field}"
        raise refusal from None
    names = Counter(principle.name for principle in found.principles)
    for place, principle in enumerate(found.principles):
        if names[principle.name] > 1:
            raise RecipeError(
                f"{names[principle.name]} principles have the name '{principle.name}'",
                file=str(path),
                row=rows.get(f"principles.{place}.name", rows.get(f"principles.{place}")),
                field=f"principles.{place}.name",
                value=principle.name,
                remedy="give each principle its own name",
            )
    return found
