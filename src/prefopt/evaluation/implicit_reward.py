"""Does a policy rank completions as the comparisons do, relative to its reference?

The implicit reward of a completion is β·(log π − log π_ref) in nats (Rafailov et al. 2023,
arXiv:2305.18290, section 5.1). No text is generated: this measures ranking, not writing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.engine.cache import ScoreCache
from prefopt.engine.logps import Scorer, Sharing
from prefopt.engine.packed import in_order
from prefopt.engine.tokens import Encoder, OnError, TokenGroup, TooLong
from prefopt.errors import PolicyError
from prefopt.evaluation.ches import ches_of_tokens
from prefopt.evaluation.features import Collected
from prefopt.evaluation.intervals import Interval, clustered_bootstrap
from prefopt.evaluation.reward_bench import nothing_to_score
from prefopt.judges.scoring import preference
from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer
from prefopt.records import Comparison, Group
from prefopt.training.references import cache_key

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

Progress = Callable[[int], None]
Floats = NDArray[np.float64]
_CHUNK = 512  # groups scored between two reports of progress
_HIGHEST = 5  # rows of highest CHES that a summary names


@dataclass(frozen=True)
class ScoreResult:
    """How well implicit rewards agree with comparisons.

    Attributes:
        comparisons: how many were scored; without any, the numbers below are NaN.
        accuracy: weighted share that the policy ranks as preferred; equal margins and
            comparisons of probability ½ count half, one below ½ is read the other way round.
        accuracy_interval: 95 %, clustered by prompt.
        margin: weighted mean of β·h, h the difference of the log-ratios in nats.
        length_baseline: the accuracy of "the longer one is better", in tokens, beside it.
        prompts: distinct prompts, the clusters of the interval.
        skipped: comparisons that tokenising left out, by reason.
        cut: groups that tokenising shortened, by where.
        rows: one object a comparison, for a file.
        highest_ches: the rows that are most alike to the policy, highest length-normalised
            CHES first; None where it was not asked for.
    """

    comparisons: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    margin: float
    length_baseline: float
    prompts: int
    skipped: dict[str, int]
    cut: dict[str, int]
    rows: list[dict[str, Any]]
    highest_ches: list[dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as `prefopt score --json` prints it, without the rows."""
        similar = {} if self.highest_ches is None else {"highest_ches": self.highest_ches}
        return {
            "comparisons": self.comparisons,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "margin": self.margin,
            "length_baseline": self.length_baseline,
            "prompts": self.prompts,
            "skipped": self.skipped,
            "cut": self.cut,
            **similar,
        }


def score_policy(
    policy: Policy,
    reference: Policy | None,
    groups: Iterable[Group],
    *,
    beta: float = 0.1,
    microbatch_tokens: int = 8192,
    sharing: Sharing = "auto",
    max_length: int | None = None,
    too_long: TooLong = "error",
    on_error: OnError = "raise",
    seed: int = 0,
    ches: bool = False,
    collected: Collected | None = None,
    cache: ScoreCache | None = None,
    progress: Progress | None = None,
) -> ScoreResult:
    """Score every comparison of a data set under a policy and its reference.

    Args:
        policy: what is measured.
        reference: what it is measured against, with the same tokens; None leaves log π itself.
        groups: the data; groups without comparisons are passed over.
        beta: rewards per nat; scales the margin and leaves the accuracy alone.
        microbatch_tokens: tokens computed at once; does not change the result.
        sharing, max_length, too_long, on_error: as in training.
        seed: of the bootstrap.
        ches: add `ches` and `ches_normalized` of the policy to each row.
        collected: takes down every completion, also of groups without comparisons.
        cache: where the reference's scores are kept; defaults to the one of every run.
        progress: called with the comparisons done so far, or the completions of `collected`.

    Raises:
        DataError: there is nothing to score, or a row is refused by tokenising.
        PolicyError: policy and reference have different vocabularies.
    """
    if reference is not None:
        check_same_tokens(policy, reference)
    limit = policy.max_length if max_length is None else max_length
    rules: dict[str, Any] = {"max_length": limit, "too_long": too_long, "on_error": on_error}
    rules["columns"] = None if collected is None else collected.columns
    encoder = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn, **rules)
    scorer = Scorer(policy.model, sharing=sharing)
    baseline = _baseline(reference, microbatch_tokens, sharing, cache)
    rows: list[dict[str, Any]] = []
    # The prompt's tokens identify it: two prompts with the same tokens are one to a policy.
    stream = (e for e in encoder(groups) if e.comparisons or collected is not None)
    while chunk := list(islice(stream, _CHUNK)):
        scores, base = score_packed(scorer, chunk, microbatch_tokens).numpy(), baseline(chunk)
        fresh = _rows(chunk, scores, base, beta, reference is not None)
        if ches:
            _add_ches(fresh, *ches_of_tokens(scorer, chunk, microbatch_tokens))
        if collected is not None:
            collected.add(scorer, chunk, scores, beta * (scores - base), microbatch_tokens)
        rows += fresh
        if progress is not None:
            progress(len(rows) if collected is None else len(collected))
    if not rows and not collected:
        raise nothing_to_score()
    return _summary(rows, encoder, seed)


def check_same_tokens(policy: Policy, reference: Policy) -> None:
    """Refuse a reference to which the policy's token ids mean something else.

    Raises:
        PolicyError: the vocabularies differ.
    """
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise PolicyError(
            f"'{policy.name}' and '{reference.name}' have different vocabularies, so a "
            "log-ratio between them means nothing",
            field="reference",
            value=reference.name,
            remedy="give the model that the policy was trained from",
        )


def _summary(rows: list[dict[str, Any]], encoder: Encoder, seed: int) -> ScoreResult:
    if not rows:  # prompts with completions that nobody has compared yet
        nothing = float("nan")
        report = dict(encoder.report.skipped), dict(encoder.report.cut)
        return ScoreResult(0, nothing, (nothing, nothing), nothing, nothing, 0, *report, [])
    weights = [row["weight"] for row in rows]
    clusters = [row["prompt"] for row in rows]

    def mean(key: str) -> Interval:
        values = [row[key] for row in rows]
        return clustered_bootstrap(values, clusters, weights=weights, seed=seed)

    accuracy = mean("correct")
    return ScoreResult(
        comparisons=len(rows),
        accuracy=accuracy.mean,
        accuracy_interval=accuracy.ends,
        margin=float(np.average([row["margin"] for row in rows], weights=weights)),
        length_baseline=float(np.average([row["longer"] for row in rows], weights=weights)),
        prompts=accuracy.clusters,
        skipped=dict(encoder.report.skipped),
        cut=dict(encoder.report.cut),
        rows=rows,
        highest_ches=_highest(rows) if "ches" in rows[0] else None,
    )


def _add_ches(rows: list[dict[str, Any]], *columns: torch.Tensor) -> None:
    for row, ches, normalized in zip(rows, *(column.tolist() for column in columns), strict=True):
        row |= {"ches": ches, "ches_normalized": normalized}


def _highest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = ("file", "row", "preferred", "dispreferred", "ches", "ches_normalized")
    first = sorted(rows, key=lambda row: -row["ches_normalized"])[:_HIGHEST]
    return [{name: row[name] for name in kept} for row in first]


def _no_reference(groups: Sequence[TokenGroup]) -> Floats:
    """As if every completion were equally probable: nothing is taken away from log π."""
    return np.zeros(sum(len(group.completions) for group in groups))


def _baseline(
    reference: Policy | None, microbatch_tokens: int, sharing: Sharing, cache: ScoreCache | None
) -> Callable[[Sequence[TokenGroup]], Floats]:
    """The same for a reference, from the cache where it has them; zeros without one."""
    if reference is None:
        return _no_reference
    store = cache or ScoreCache()
    scorer = Scorer(reference.model, sharing=sharing)
    tokenizer = fingerprint_tokenizer(reference.tokenizer)
    key = cache_key(fingerprint_model(reference.model), tokenizer, "fp32")

    def scores(groups: Sequence[TokenGroup]) -> Floats:
        found = store.get(key, groups)
        if found is None:
            found = score_packed(scorer, groups, microbatch_tokens)
            store.put(key, groups, found)
        return found.numpy()

    return scores


@torch.no_grad()
def score_packed(
    scorer: Scorer, groups: Sequence[TokenGroup], microbatch_tokens: int
) -> torch.Tensor:
    """(B,) float64 scores of the groups' completions, in order, whatever the packing."""
    training = scorer.model.training
    scorer.model.eval()
    try:
        return in_order(scorer, groups, microbatch_tokens).double().cpu()
    finally:
        scorer.model.train(training)


def _rows(
    groups: Sequence[TokenGroup],
    scores: Floats,
    baseline: Floats,
    beta: float,
    has_reference: bool,
) -> list[dict[str, Any]]:
    """One object a comparison, its sides ordered so that the first is the better one."""
    rows = []
    start = 0
    for group in groups:
        for edge in group.comparisons:
            rows.append(_row(group, edge, scores[start:], baseline[start:], beta, has_reference))
        start += len(group.completions)
    return rows


def _row(
    group: TokenGroup,
    edge: Comparison,
    scores: Floats,
    baseline: Floats,
    beta: float,
    has_reference: bool,
) -> dict[str, Any]:
    flipped = edge.probability < 0.5
    better, worse = (
        (edge.dispreferred, edge.preferred) if flipped else (edge.preferred, edge.dispreferred)
    )
    gap = (scores[better] - baseline[better]) - (scores[worse] - baseline[worse])
    lengths = len(group.completions[better]), len(group.completions[worse])
    origin = group.origins[0] if group.origins else None
    row: dict[str, Any] = {
        "prompt": hashlib.blake2b(group.prompt.tobytes(), digest_size=16).hexdigest(),
        "file": origin.file if origin else None,
        "row": origin.row if origin else None,
        "source": group.source,
        "preferred": better,
        "dispreferred": worse,
        "probability": max(edge.probability, 1 - edge.probability),
        "weight": edge.weight,
        "logp_preferred": float(scores[better]),
        "logp_dispreferred": float(scores[worse]),
        "length_preferred": lengths[0],
        "length_dispreferred": lengths[1],
        "margin": float(beta * gap),
        "correct": 0.5 if edge.probability == 0.5 else preference(gap),
        "longer": 0.5 if edge.probability == 0.5 else preference(lengths[0] - lengths[1]),
    }
    if has_reference:
        row["reference_logp_preferred"] = float(baseline[better])
        row["reference_logp_dispreferred"] = float(baseline[worse])
    return row
