"""A reward model as a judge: the better completion is the one with the higher reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefopt.judges import settings
from prefopt.judges.judge import Judge, Progress, Question, Verdict
from prefopt.judges.scoring import compare_by_scores
from prefopt.judges.table import Context
from prefopt.records import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from prefopt.engine.tokens import TokenGroup
    from prefopt.policies.load import Policy


class Rewarding:
    """A judge by the numbers of a model, on which Bradley and Terry's model was fitted.

    P(the first is better) = σ((r₁ − r₂)/T).

    Args:
        name: of the judge.
        policy: the model whose tokens the completions become.
        score: (B,) rewards of groups of tokens.
        about: what the rewards depend on, as plain JSON.
        temperature: T, in units of reward.
        microbatch_tokens: tokens computed at once; never changes a reward.

    Attributes:
        unscored: why an answer got no reward (`engine.answers.score_answers`).
    """

    #: it sees one completion at a time
    sees_order = False

    def __init__(
        self,
        name: str,
        policy: Policy,
        score: Callable[[Sequence[TokenGroup]], Tensor],
        about: Mapping[str, Any],
        *,
        temperature: float = 1.0,
        microbatch_tokens: int = 8192,
    ) -> None:
        self.name = name
        self._policy, self._score = policy, score
        self.unscored: dict[tuple[Prompt, str], str] = {}
        ends = sorted(policy.end_of_turn)
        self._about = {**about, "ends": ends, "temperature": temperature}
        self._temperature, self._microbatch_tokens = temperature, microbatch_tokens

    def identity(self) -> Mapping[str, Any]:
        return self._about

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        return compare_by_scores(self, questions, temperature=self._temperature, progress=progress)

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        """Rewards; None of an answer that cannot be encoded, and why in `unscored`."""
        from prefopt.engine.answers import score_answers

        numbers = score_answers(
            self._policy,
            self._score,
            answers,
            microbatch_tokens=self._microbatch_tokens,
            progress=progress,
        )
        why = {
            one: said for one, said in zip(answers, numbers, strict=True) if isinstance(said, str)
        }
        self.unscored.update(why)
        return [None if isinstance(said, str) else said for said in numbers]


def make_reward(chosen: settings.Reward, context: Context) -> Judge:
    """The reward model in a folder, in a run's folder, or of a hub id.

    Raises:
        PolicyError: it cannot be loaded, or is no reward model.
    """
    from prefopt.engine.rewards import RewardScorer
    from prefopt.policies.export import model_folder
    from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer
    from prefopt.policies.reward import load_reward_model

    policy = load_reward_model(model_folder(chosen.model), device=context.device)
    about = {
        "kind": "reward",
        "model": fingerprint_model(policy.model),
        "tokenizer": fingerprint_tokenizer(policy.tokenizer),
    }
    return Rewarding(
        f"reward:{chosen.model}",
        policy,
        RewardScorer(policy.model),
        about,
        temperature=chosen.temperature,
        microbatch_tokens=chosen.microbatch_tokens,
    )
