"""Is the policy's text preferred? Win rates of fresh samples, and how far the policy moved.

The two numbers belong together: a win rate says what was gained, the divergence from the
reference what was paid for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.engine.logps import Scorer, Sharing
from prefopt.engine.tokens import TokenGroup
from prefopt.evaluation.implicit_reward import check_same_tokens, score_packed
from prefopt.evaluation.intervals import clustered_bootstrap
from prefopt.judges.scoring import preference
from prefopt.records import Prompt, prompt_key

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

#: (prompt, text) -> how good the text is
Reward = Callable[[Any, str], float]
#: (prompt, first text, second text) -> 1 the first is better, 0 the second, ½ a tie
Judge = Callable[[Any, str, str], float]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often the first of two texts is the better one.

    Attributes:
        rate: mean of {1 won, ½ tie, 0 lost}.
        interval: 95 %, clustered by prompt.
        ties: share of ties, which are in `rate` as halves.
        pairs: pairs judged.
        prompts: distinct prompts, the clusters of the interval.
    """

    rate: float
    interval: tuple[float, float]
    ties: float
    pairs: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """Sequence-level KL(π ‖ π_ref), estimated from samples of π.

    Attributes:
        kl: mean of log π − log π_ref over samples, in nats a completion; a small one may
            come out negative by chance.
        standard_error: of that mean.
        samples: completions it rests on.
    """

    kl: float
    standard_error: float
    samples: int


def win_rate(
    prompts: Sequence[Prompt],
    ours: Sequence[Sequence[str]],
    theirs: Sequence[Sequence[str]],
    judge: Judge,
    *,
    seed: int = 0,
) -> WinRate:
    """Judge our samples against theirs, the i-th of a prompt with the i-th.

    Args:
        prompts: P prompts.
        ours: P lists of texts, as `sample` returns them.
        theirs: the same from the other policy.
        judge: says which of two texts is better.
        seed: of the bootstrap.

    Raises:
        ValueError: the two sides do not have the same numbers of samples, or there are none.
    """
    verdicts: list[float] = []
    clusters: list[bytes] = []
    for prompt, left, right in zip(prompts, ours, theirs, strict=True):
        for first, second in zip(left, right, strict=True):
            verdict = judge(prompt, first, second)
            if verdict not in (0.0, 0.5, 1.0):
                raise ValueError(f"a judge must answer 1, 0 or 0.5, got {verdict!r}")
            verdicts.append(verdict)
            clusters.append(prompt_key(prompt))
    estimate = clustered_bootstrap(verdicts, clusters, seed=seed)
    return WinRate(
        rate=estimate.mean,
        interval=estimate.ends,
        ties=float(np.mean(np.equal(verdicts, 0.5))),
        pairs=len(verdicts),
        prompts=estimate.clusters,
    )


def by_reward(reward: Reward) -> Judge:
    """A judge that prefers the text of higher reward; equal rewards are a tie."""

    def judge(prompt: Any, first: str, second: str) -> float:
        gap = reward(prompt, first) - reward(prompt, second)
        return preference(gap)

    return judge


def sampled_kl(
    policy: Policy,
    reference: Policy,
    samples: Sequence[TokenGroup],
    *,
    microbatch_tokens: int = 8192,
    sharing: Sharing = "auto",
) -> Divergence:
    """KL of a policy to its reference, from completions that the policy itself wrote.

    The mean of log π − log π_ref under π, so the samples must be fresh ones at temperature 1,
    all tokens allowed: `sampling.sample_tokens` with its defaults.

    Raises:
        ValueError: there are no samples.
        PolicyError: policy and reference have different vocabularies.
    """
    if not samples:
        raise ValueError("a divergence needs at least one sample")
    ratios = log_ratios(
        policy, reference, samples, microbatch_tokens=microbatch_tokens, sharing=sharing
    )
    spread = float(ratios.std(ddof=1)) if len(ratios) > 1 else float("nan")
    return Divergence(float(ratios.mean()), spread / len(ratios) ** 0.5, len(ratios))


def log_ratios(
    policy: Policy,
    reference: Policy,
    samples: Sequence[TokenGroup],
    *,
    microbatch_tokens: int = 8192,
    sharing: Sharing = "auto",
) -> NDArray[Any]:
    """(B,) log π − log π_ref of completions in nats, group by group.

    Raises:
        PolicyError: policy and reference have different vocabularies.
    """
    check_same_tokens(policy, reference)
    ours, theirs = (
        score_packed(Scorer(side.model, sharing=sharing), samples, microbatch_tokens)
        for side in (policy, reference)
    )
    ratios: NDArray[Any] = (ours - theirs).numpy()
    return ratios
