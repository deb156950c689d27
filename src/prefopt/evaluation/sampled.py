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
    device: str | None = None,
    progress: Callable[..., None] | None = None,
    **how: Any,
) -> None:
    """Add answers of a model to every prompt.

    Args:
        answers: with the prompts; to add to.
        source: a run's folder, a model folder, an adapter folder, a hub id, or a server's URL.
        name: what to call the policy; by default as the sampler does.
        device: where a model on this machine computes.
        progress: called with the answers done so far, and how many there will be.
        how: the fields of `sampling.settings.Settings`.

    Raises:
        DataError: there are answers of a policy of that name already.
        PolicyError: the model cannot be loaded.
        RecipeError: a setting is out of range.
    """
    from prefopt.sampling.sampler import Sample, is_url, make_sampler
    from prefopt.sampling.settings import Settings

    settings = Settings(**how)
    served = is_url(source.removeprefix("server:"))
    sampler = make_sampler(source if served else {"policy": source, "device": device})
    policy = name or sampler.name
    if policy in answers.texts:
        raise DataError(
            f"there are answers of '{policy}' already",
            kind="duplicate_prompt", field="answers", value=source,
            remedy="give the model a name, like second=FOLDER",
        )  # fmt: skip
    prompts = list(answers.prompts.values())
    done = 0

    def count(_: int, samples: list[Sample]) -> None:
        nonlocal done
        done += len(samples)
        if progress is not None:
            progress(done, settings.n * len(prompts))

    for prompt, samples in zip(prompts, sampler.sample_all(prompts, settings, count), strict=True):
        for sample in samples:
            answers.add(policy, prompt, sample.text)
