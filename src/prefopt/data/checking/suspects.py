"""Labels that a cheap model, trained on the other prompts, would have given the other way.

A logistic regression on the difference of the two sides: their words (TF-IDF over hashes), their
length and their marks. It is fitted K times, each time without the prompts that it then judges,
so that no label takes part in its own judgement. Where a preference is strongly on the other side
of what all other labels suggest, somebody may have slipped; or the cheap model knows too little.
Nothing here can say how many of those that are listed are wrong: that needs a second look at them,
which is what the list is for. Where the model is not better than chance, it lists nothing.

Confident learning (Northcutt et al. 2021) does so for classes; here are margins of pairs.

Shapes: n comparisons of the sample that have a preferred side.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking import estimates
from prefopt.data.checking.estimates import Estimate
from prefopt.data.checking.facts import Facts, Texts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.marks import NAMES

FOLDS = 5
FEWEST = 100  # comparisons, and ten prompts a fold: with less, nothing is fitted
BEYOND = -2.0  # standard deviations from the mean margin, and
ODDS = 2.0  # for the other side: from both on a label is suspect

LISTED = 200  # labels that details list

_HASHES = 1 << 16
_CHARACTERS = 4000  # of a completion that are read
_STRENGTH = 1.0  # inverse of the L2 penalty


@dataclass(frozen=True)
class Margins:
    """What the models said about comparisons that they had not seen.

    Attributes:
        comparisons: (n,) indices among those of `Facts`, ascending.
        log_odds: (n,) of the given label, times how sure it is itself (0 of a tie, 1 at most).
        margins: (n,) the same, less its mean and by its standard deviation in the fold.
        accuracy: share of comparisons on whose preferred side the margin is, by weight.
    """

    comparisons: NDArray[np.int64]
    log_odds: NDArray[np.float64]
    margins: NDArray[np.float64]
    accuracy: Estimate

    @property
    def informative(self) -> bool:
        """Whether the models are better than chance, beyond doubt."""
        return self.accuracy.low > 0.5

    @property
    def suspects(self) -> NDArray[np.int64]:
        """Places among the n, the most suspicious first.

        Far out among the margins of their fold, and with the odds clearly on the other side.
        """
        found = (self.margins <= BEYOND) & (self.log_odds <= -math.log(ODDS))
        order = np.lexsort((self.comparisons, self.margins))
        suspects: NDArray[np.int64] = order[found[order]]
        return suspects


def margins(facts: Facts, texts: Texts, *, seed: int = 0) -> Margins | None:
    """Cross-fitted margins of a sample, or None if it is too small to fit anything.

    They do not depend on the order of the rows: the fold of a comparison follows from its prompt
    and the seed.
    """
    chosen = [
        e for e in texts.examples if facts.toward[e.comparison] and facts.weight[e.comparison]
    ]
    where = np.array([example.comparison for example in chosen], dtype=np.int64)
    folds = _folds(facts.prompt[where], seed)
    prompts = np.unique(facts.prompt[where], return_inverse=True)[1].astype(np.int64)
    if len(where) < FEWEST or len(np.unique(facts.prompt[where])) < 10 * FOLDS:
        return None
    features = _features(facts, where, chosen)
    weight = facts.weight[where].astype(np.float64)
    sure = 2 * facts.probability[where].astype(np.float64) - 1
    said, far = np.zeros(len(where)), np.zeros(len(where))
    for fold in np.unique(folds):
        held = folds == fold
        model = _fitted(features[~held], (weight * sure)[~held])
        said[held] = features[held] @ model
        far[held] = _standardised((said * sure)[held])
    right = np.where(said == 0, 0.5, said > 0)
    return Margins(where, said * sure, far, estimates.share(right, prompts, weight))


def figures(known: Margins | None) -> dict[str, Any] | None:
    """How good the cheap model is, and how its margins are spread; plain JSON.

    Returns:
        `accuracy` (an estimate), `informative`, `edges` and `counts` of a histogram of the
        standardised margins; None if nothing was fitted.
    """
    if known is None:
        return None
    counts, edges = np.histogram(np.clip(known.margins, -4, 4), bins=32, range=(-4, 4))
    return {
        "accuracy": known.accuracy.to_dict(),
        "informative": known.informative,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def find(
    facts: Facts, texts: Texts, *, seed: int = 0, most: int = 20, known: Margins | None = None
) -> Iterator[Finding]:
    """One finding of kind suspect_label, or none.

    Args:
        facts, texts: the columns and the sample.
        seed: of the folds.
        most: rows that the finding names, of the most suspicious; its details list 200 in order,
            and `count` has all of them.
        known: what `margins` gave for them, if it was asked before.
    """
    known = known or margins(facts, texts, seed=seed)
    if known is None or not known.informative:
        return
    suspects = known.suspects
    if not len(suspects):
        return
    listed = known.comparisons[suspects[:LISTED]]
    shares = [f"{100 * share:.1f} %" for share in (known.accuracy.value, *known.accuracy.ends)]
    sample = "" if texts.whole else f"in a sample of {len(known.comparisons):,}, "
    yield Finding(
        "suspect_label",
        len(suspects),
        facts.places(listed[:most], most),
        message=f"{sample}a cheap model that was fitted on other prompts clearly prefers the "
        f"other side; it agrees with {shares[0]} of the labels ({shares[1]} to {shares[2]}), "
        "and how many of these are mistakes is not known",
        details={
            "accuracy": known.accuracy.to_dict(),
            "comparisons": len(known.comparisons),
            "listed": [
                {**facts.places(np.array([index]), 1)[0].to_dict(), "margin": round(margin, 3)}
                for index, margin in zip(
                    listed.tolist(), known.margins[suspects[:LISTED]].tolist(), strict=True
                )
            ],
        },
    )


def _folds(prompts: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
    """A fold for each prompt, from its digest: no prompt is in two."""
    digits = prompts ^ np.uint64((seed * 0x9E3779B97F4A7C15) % (1 << 64))
    digits = (digits ^ (digits >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((digits >> np.uint64(33)) % np.uint64(FOLDS)).astype(np.int64)


def _features(facts: Facts, where: NDArray[np.int64], chosen: list[Any]) -> Any:
    """(n, F) sparse: preferred minus dispreferred. No label takes part in it but by the sign."""
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    texts = [example.preferred[:_CHARACTERS] for example in chosen]
    texts += [example.dispreferred[:_CHARACTERS] for example in chosen]
    hashed = HashingVectorizer(
        n_features=_HASHES, alternate_sign=False, norm=None, token_pattern=r"\b\w+\b"
    ).transform(texts)
    words = TfidfTransformer(sublinear_tf=True).fit_transform(hashed)
    lengths = np.log1p(facts.preferred_length[where]) - np.log1p(facts.dispreferred_length[where])
    marks = [
        (facts.preferred_marks[where] & bit != 0).astype(np.float64)
        - (facts.dispreferred_marks[where] & bit != 0)
        for bit in NAMES
    ]
    dense = sparse.csr_array(np.column_stack([lengths, *marks]))
    size = len(chosen)
    return sparse.csr_array(sparse.hstack([words[:size] - words[size:], dense]))


def _fitted(features: Any, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """(F,) coefficients. Every second comparison is turned round, which leaves the loss as it is
    and gives scikit-learn its two classes."""
    from scipy import sparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    signs = np.where(np.arange(features.shape[0]) % 2, -1.0, 1.0)
    model = LogisticRegression(C=_STRENGTH, fit_intercept=False, max_iter=200)
    with warnings.catch_warnings():
        # a model that is not quite at its optimum is judged out of fold like any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(sparse.diags_array(signs) @ features, signs, sample_weight=weight)
    coefficients: NDArray[np.float64] = np.asarray(model.coef_, dtype=np.float64)[0]
    return coefficients


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = float(values.std())
    centred: NDArray[np.float64] = values - values.mean()
    if spread:
        centred /= spread
    return centred
