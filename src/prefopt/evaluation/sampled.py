"""Answers of a model that is asked now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefopt.errors import DataError
from prefopt.evaluation.answers import Answers


def ask_model(
    answers: Answers,
    source: str,
    name: str | None,
    *,
    n: int,
    device: str | None = None,
    progress: Callable[..., None] | None = None,
    **how: Any,
) -> None:
    """Add n answers of a model to every prompt.

    Args:
        answers: with the prompts; to add to.
        source: a run's folder, a model folder, an adapter folder, or a hub id.
        name: what to call the policy; by default as `source`.
        n: answers to each prompt.
        device: where it computes.
        progress: called with the answers done so far.
        how: further settings of `sampling.generate.sample`.

    Raises:
        DataError: there are answers of a policy of that name already.
        PolicyError: the model cannot be loaded.
    """
    policy = name or source
    if policy in answers.texts:
        raise DataError(
            f"there are answers of '{policy}' already",
            kind="duplicate_prompt", field="answers", value=source,
            remedy="give the model a name, like second=FOLDER",
        )  # fmt: skip
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy
    from prefopt.sampling.generate import sample

    speaker = load_policy(model_folder(source), device=device)
    prompts = list(answers.prompts.values())
    said = sample(speaker, prompts, n=n, progress=progress, **how)
    for prompt, texts in zip(prompts, said, strict=True):
        for text in texts:
            answers.add(policy, prompt, text)
