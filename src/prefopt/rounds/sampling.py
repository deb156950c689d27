"""The stage that samples: n completions of every prompt of the round, kept as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.data.formats import read_groups
from prefopt.records import Prompt
from prefopt.rounds.settings import RoundsFile
from prefopt.sampling.keeping import answer_into
from prefopt.sampling.sampler import LocalSampler, make_sampler
from prefopt.training.display import Display, counted


def sample(
    folder: Path,
    file: RoundsFile,
    model: str,
    prompts: Sequence[Prompt],
    *,
    name: str,
    seed: int,
    display: Display,
) -> dict[str, Any]:
    """Write `samples.jsonl`: groups of completions that nobody has compared yet.

    Samples depend on policy, seed and prompt alone, so prompts that were finished before an
    interruption are not sampled again and the file comes out the same.

    Args:
        folder: of the stage.
        file: the settings.
        model: the policy.
        prompts: of the round.
        name: what the completions are said to come from.
        seed: of the samples.
        display: for progress.
    """
    how = {"device": file.device, "batch_size": file.sample.batch_size}
    sampler = make_sampler({"policy": model, **how})
    assert isinstance(sampler, LocalSampler)
    sampler.name = name
    path = folder / "samples.jsonl"
    with display.bar("sampling, prompts", len(prompts)) as advance:
        found = answer_into(
            path, sampler, prompts, file.sample.settings(seed), progress=counted(advance)
        )
    texts = [item.text for group in read_groups([str(path)]) for item in group.completions]
    return {
        "prompts": found.prompts, "completions": found.completions, "cut": found.cut,
        "duplicates": found.duplicates, "mean_length": sum(map(len, texts)) / len(texts),
    }  # fmt: skip
