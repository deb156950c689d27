"""A trial's policy against its reference: both answer, and the probe's reward judges.

A process of its own, so that two more models need no memory in the sweep:
`python -m prefopt.sweeps.judging RUN --answers FOLDER [--prompts FILE] [--device DEVICE]`.
It prints one JSON object. Without `--prompts` the probe's are used, and the run folder gets
`evaluation.json` and `samples.jsonl`, which its report shows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prefopt.data.prompts import read_prompts
from prefopt.errors import DataError, PrefoptError, RecipeError
from prefopt.recipe import Recipe, load_recipe
from prefopt.records import Prompt, prompt_key
from prefopt.runs import Run, write_text

if TYPE_CHECKING:
    from prefopt.engine.tokens import TokenGroup
    from prefopt.policies.load import Policy

#: seed of the samples: not one that a probe has used while training
_SEED = 1 << 40


def judge(run: Run, answers: Path, prompts: str | None, device: str | None) -> dict[str, Any]:
    """Sample both policies on the same prompts with the same random numbers, and compare.

    Args:
        run: a finished run with a probe that has a reward.
        answers: where the reference's answers are kept, which are the same for many runs.
        prompts: a file of other prompts than the probe's.
        device: where to compute.

    Returns:
        `win_rate`, `win_rate_interval`, `ties`, `reward_before`, `reward_after`, `kl`,
        `kl_standard_error`, `prompts`, `opponent`.
    """
    from prefopt.evaluation.win_rate import by_reward, sampled_kl, win_rate
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy
    from prefopt.sampling.generate import to_texts

    recipe = load_recipe(run.recipe, {} if device is None else {"device": device}).recipe
    asked = _asked(recipe, prompts)
    after = load_policy(model_folder(run.folder), device=recipe.device)
    name = recipe.model if recipe.reference.own else recipe.reference.name
    before = load_policy(model_folder(name), device=recipe.device)
    groups = _sampled(after, recipe, asked)
    ours = to_texts(after, groups)
    theirs = _kept(before, recipe, asked, answers)
    worth = _worth(recipe, asked, [ours, theirs])
    wins = win_rate(
        asked,
        ours,
        theirs,
        by_reward(lambda prompt, text: worth[prompt_key(prompt), text]),
        seed=recipe.seed,
    )
    divergence = sampled_kl(
        after,
        before,
        groups,
        microbatch_tokens=recipe.microbatch_tokens,
        sharing=recipe.sharing,
    )
    rows = _rows(asked, ours, theirs, worth)
    result = {
        "win_rate": wins.rate,
        "win_rate_interval": list(wins.interval),
        "ties": wins.ties,
        "reward_before": fmean(row["reward_before"] for row in rows),
        "reward_after": fmean(row["reward_after"] for row in rows),
        "kl": divergence.kl,
        "kl_standard_error": divergence.standard_error if len(rows) > 1 else None,
        "prompts": len(asked),
        "opponent": "the reference",
    }
    if prompts is None:
        _write(run, result, rows)
    return result


def _rows(
    prompts: Sequence[Prompt],
    ours: Sequence[Sequence[str]],
    theirs: Sequence[Sequence[str]],
    worth: Mapping[tuple[bytes, str], float],
) -> list[dict[str, Any]]:
    """Both answers to each prompt with what they are worth, as a run's report reads them."""
    return [
        {
            "prompt": _plain(prompt),
            "before": old,
            "after": new,
            "reward_before": worth[prompt_key(prompt), old],
            "reward_after": worth[prompt_key(prompt), new],
        }
        for prompt, mine, other in zip(prompts, ours, theirs, strict=True)
        for new, old in zip(mine, other, strict=True)
    ]


def _write(run: Run, result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Into the run folder, the result last: it means that the trial was judged."""
    from prefopt.report import build_report

    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(run.samples, "".join(lines).encode("utf-8", "replace").decode("utf-8"))
    run.write_json(run.evaluation, result)
    build_report(run.folder)


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]


def _asked(recipe: Recipe, prompts: str | None) -> list[Prompt]:
    probe = recipe.probe
    if probe is None or probe.reward is None:
        raise RecipeError(
            "a win rate is judged by the probe's reward, and the run has none",
            field="probe.reward",
            remedy="give the recipe a probe with a reward",
        )
    found = list(dict.fromkeys(read_prompts([prompts or probe.prompts])))
    if not found:
        raise DataError("there are no prompts to judge on", kind="no_prompts", file=prompts)
    return found if prompts else found[: probe.max_prompts]


def _sampled(policy: Policy, recipe: Recipe, prompts: Sequence[Prompt]) -> list[TokenGroup]:
    from prefopt.sampling.generate import sample_tokens

    assert recipe.probe is not None
    return sample_tokens(
        policy,
        prompts,
        n=recipe.probe.samples,
        max_new_tokens=recipe.probe.max_new_tokens,
        seed=_SEED,
    )


def _kept(
    policy: Policy, recipe: Recipe, prompts: Sequence[Prompt], folder: Path
) -> list[list[str]]:
    """The reference's answers, sampled once for all runs that have it."""
    from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer
    from prefopt.sampling.generate import to_texts

    assert recipe.probe is not None
    key = [
        fingerprint_model(policy.model),
        fingerprint_tokenizer(policy.tokenizer),
        recipe.probe.samples,
        recipe.probe.max_new_tokens,
        [prompt_key(prompt).hex() for prompt in prompts],
    ]
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"
    if not path.exists():
        texts = to_texts(policy, _sampled(policy, recipe, prompts))
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(texts))
    found: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _worth(
    recipe: Recipe, prompts: Sequence[Prompt], sides: Sequence[Sequence[Sequence[str]]]
) -> dict[tuple[bytes, str], float]:
    """The reward of every different answer."""
    from prefopt.constraints import measure_all
    from prefopt.training.probing import make_reward_of

    reward = make_reward_of(recipe)
    assert reward is not None
    pairs = {
        (prompt_key(prompt), text): (prompt, text)
        for side in sides
        for prompt, texts in zip(prompts, side, strict=True)
        for text in texts
    }
    values = measure_all(reward, list(pairs.values()), name="reward")
    return dict(zip(pairs, values, strict=True))


def main(arguments: Sequence[str]) -> int:
    """The command; errors are printed as the command line prints them with `--json`."""
    parser = argparse.ArgumentParser(prog="python -m prefopt.sweeps.judging")
    parser.add_argument("run")
    parser.add_argument("--answers", required=True)
    parser.add_argument("--prompts")
    parser.add_argument("--device")
    given = parser.parse_args(arguments)
    try:
        with redirect_stdout(sys.stderr):
            result = judge(Run(given.run), Path(given.answers), given.prompts, given.device)
    except PrefoptError as error:
        print(json.dumps({"error": error.to_dict()}))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
