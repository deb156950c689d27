"""Answers of a model that is asked now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import DataError
from prefopt.evaluation.answers import Answers
from prefopt.records import Prompt

if TYPE_CHECKING:
    from prefopt.sampling.sampler import Sample, Sampler
    from prefopt.sampling.settings import Settings

_KEPT = "answers"  # below the folder of verdicts


def named_models(
    answers: Answers, models: Sequence[tuple[str | None, str]]
) -> list[tuple[str, str]]:
    """What each model is called, and where it is; known before any of them is asked.

    Args:
        answers: that are there already.
        models: a name, or None for the model's own, and a run's folder, a model folder, an
            adapter folder, a hub id, or a server's URL.

    Raises:
        DataError: two policies have one name.
        PolicyError: there is no model in a folder.
        ServerError: a server does not say what it serves.
    """
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import refuse_no_model

    found: list[tuple[str, str]] = []
    for name, source in models:
        if not _is_served(source):
            refuse_no_model(model_folder(source))
        policy = name or (_sampler(source, None).name if _is_served(source) else source)
        if policy in answers.texts or any(policy == other for other, _ in found):
            raise DataError(
                f"there are two policies called '{policy}'",
                kind="duplicate_prompt", field="answers", value=source,
                remedy="give the model a name, like second=FOLDER",
            )  # fmt: skip
        found.append((policy, source))
    return found


def ask_model(
    answers: Answers,
    source: str,
    policy: str,
    *,
    cache: str | None = None,
    device: str | None = None,
    progress: Callable[..., None] | None = None,
    **how: Any,
) -> None:
    """Add answers of a model to every prompt.

    Args:
        answers: with the prompts; to add to.
        source: as for `named_models`.
        policy: what the model is called.
        cache: folder in which answers are kept as they come, so that nothing is asked twice.
        device: where a model on this machine computes.
        progress: called with the prompts answered so far, and how many there are.
        how: the fields of `sampling.settings.Settings`.

    Raises:
        PolicyError: the model cannot be loaded.
        RecipeError: a setting is out of range.
        RunError: the folder cannot be used.
        ServerError: a server failed for good.
    """
    from prefopt.sampling.keeping import samples_in
    from prefopt.sampling.settings import Settings

    settings, sampler = Settings(**how), _sampler(source, device)
    prompts = list(answers.prompts.values())
    if cache is not None:
        kept = Path(cache) / _KEPT
        every = samples_in(kept, sampler, prompts, settings, progress=progress)
    else:
        every = _asked(sampler, prompts, settings, progress)
    for prompt, samples in zip(prompts, every, strict=True):
        for sample in samples:
            answers.add(policy, prompt, sample.text)


def _asked(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    settings: Settings,
    progress: Callable[..., None] | None,
) -> list[list[Sample]]:
    done: list[int] = []

    def count(position: int, _: list[Sample]) -> None:
        done.append(position)
        if progress is not None:
            progress(len(done), len(prompts))

    return sampler.sample_all(prompts, settings, count)


def _is_served(source: str) -> bool:
    from prefopt.sampling.sampler import is_url

    return is_url(source.removeprefix("server:"))


def _sampler(source: str, device: str | None) -> Sampler:
    from prefopt.sampling.sampler import make_sampler

    return make_sampler(source if _is_served(source) else {"policy": source, "device": device})
