"""Whether something other than the answer decides: length, position, format, refusals, one voice.

All of it is asked of comparisons with a preferred side, by weight. A share is compared with one
half, and its interval is clustered by prompt. A deviation that cannot be chance is a note; it is
a warning only beyond `MARGIN`, because with enough data no share is exactly one half, and five
points are little beside the quarter to a third of comparisons on which people disagree anyway.

Nothing here says that a bias is wrong: better answers can be longer, and refusing can be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking import estimates
from prefopt.data.checking.estimates import Codes, Estimate
from prefopt.data.checking.facts import APOLOGY, BOLD, CODE, HEADING, LIST, REFUSAL, Facts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.marks import NAMES
from prefopt.data.kinds import Level

MARGIN = 0.05  # of a share from one half, for a warning
DOMINATES = 2 / 3  # share of the comparisons that are one annotator's, or of one source
SEEN = 0.01  # share of the comparisons that differ in a mark, for a warning about it

_FORMAT, _REFUSING = (LIST, HEADING, BOLD, CODE), (REFUSAL, APOLOGY)
_LISTED = 20  # annotators, sources or categories of which figures tell
_RATIOS = (1.0, 1.1, 1.25, 1.5, 2.0, 4.0)  # by how much the longer side is longer


def figures(facts: Facts) -> dict[str, Any]:
    """What the findings rest on, as plain JSON.

    Returns:
        `lengths`: histograms on a scale of half powers of two (`edges` of B + 1 characters,
        `preferred` and `dispreferred` counts of B); `longer`: P(the preferred side is longer)
        where lengths differ, and `equal`, `mean_difference`, `auc`, `by_ratio`; `position`: P(the
        first is preferred), where the order is known, and `ties`; `marks`: for each kind of mark
        its rates on both sides, their difference, and P(preferred) where one side alone has it;
        `annotators`, `sources`, `categories`: the largest, with their shares. An estimate is
        `{"value", "interval", "comparisons", "prompts"}`, or None if there is nothing to ask.
    """
    decided = (facts.toward != 0) & (facts.weight > 0)
    prompts = np.unique(facts.prompt, return_inverse=True)[1].astype(np.int64, copy=False)
    return {
        "lengths": _histograms(facts, decided),
        "longer": _longer(facts, decided, prompts),
        "position": _position(facts, decided, prompts),
        "marks": [
            {"mark": NAMES[bit], **_mark(facts, decided, prompts, bit, len(family))}
            for family in (_FORMAT, _REFUSING)
            for bit in family
        ],
        "annotators": _voices(facts.annotator, facts.weight, facts.annotators),
        "sources": _voices(facts.source, facts.weight, facts.sources),
        "categories": _voices(facts.category, facts.weight, facts.categories),
    }


def find(
    facts: Facts, *, known: Mapping[str, Any] | None = None, most: int = 20
) -> Iterator[Finding]:
    """Findings of the kinds length_bias, position_bias, format_bias, refusal_bias, one_annotator
    and one_source.

    Args:
        facts: the columns.
        known: what `figures` gave for them, if it was asked before.
        most: rows that a finding names.
    """
    known = known or figures(facts)
    yield from _of_length(known["longer"])
    yield from _of_position(known["position"])
    marks = dict(zip(_FORMAT + _REFUSING, known["marks"], strict=True))
    yield from _of_marks("format_bias", facts, {bit: marks[bit] for bit in _FORMAT}, most)
    yield from _of_marks("refusal_bias", facts, {bit: marks[bit] for bit in _REFUSING}, most)
    yield from _of_voices("one_annotator", known["annotators"], fewest=1)
    yield from _of_voices("one_source", known["sources"], fewest=2)


# -- what is asked -------------------------------------------------------------------------


def _histograms(facts: Facts, decided: NDArray[np.bool_]) -> dict[str, Any]:
    sides = (facts.preferred_length[decided], facts.dispreferred_length[decided])
    longest = max((int(side.max()) for side in sides if len(side)), default=0)
    powers = np.arange(0, 2 * max(longest, 1).bit_length() + 1) / 2
    edges = np.concatenate(([0], np.unique(np.round(2.0**powers)))).astype(np.int64)
    counts = [
        np.bincount(np.searchsorted(edges, side, "right") - 1, minlength=len(edges) - 1)
        for side in sides
    ]
    return {
        "edges": edges.tolist(),
        "preferred": counts[0].tolist(),
        "dispreferred": counts[1].tolist(),
    }


def _longer(facts: Facts, decided: NDArray[np.bool_], prompts: Codes) -> dict[str, Any] | None:
    if not decided.any():
        return None
    long, short = (
        side[decided].astype(np.int64)
        for side in (facts.preferred_length, facts.dispreferred_length)
    )
    by, prompts, weight = long - short, prompts[decided], facts.weight[decided].astype(np.float64)
    ratios = (np.maximum(long, short) + 1) / (np.minimum(long, short) + 1)
    steps = np.searchsorted(_RATIOS, ratios, "right")
    return {
        **(_share(by > 0, by != 0, prompts, weight) or _none()),
        "equal": int(np.count_nonzero(by == 0)),
        "mean_difference": estimates.mean(by, prompts, weight).to_dict(),
        "auc": estimates.auc(by, prompts, weight).to_dict(),
        "by_ratio": [
            {"from": low, "to": high, **found}
            for step, (low, high) in enumerate(zip(_RATIOS, (*_RATIOS[1:], None), strict=True), 1)
            if (found := _share(by > 0, (by != 0) & (steps == step), prompts, weight))
        ],
    }


def _position(facts: Facts, decided: NDArray[np.bool_], prompts: Codes) -> dict[str, Any] | None:
    found = _share(facts.toward > 0, decided & facts.stated, prompts, facts.weight)
    if found is None:
        return None
    return {**found, "ties": int(np.count_nonzero(facts.stated & (facts.toward == 0)))}


def _mark(
    facts: Facts, decided: NDArray[np.bool_], prompts: Codes, bit: int, tests: int
) -> dict[str, Any]:
    """One mark; its intervals are wide enough to hold for all of its `tests` together."""
    confidence = 1 - 0.05 / tests
    sides = [side & bit != 0 for side in (facts.preferred_marks, facts.dispreferred_marks)]
    weight = np.where(decided, facts.weight, 0).astype(np.float64)
    total = float(weight.sum())
    if not total:
        return {"preferred": None, "dispreferred": None, "difference": None, "alone": None}
    alone = decided & (sides[0] != sides[1])
    rates = [float(weight[side].sum() / total) for side in sides]
    gap = sides[0].astype(np.int8) - sides[1]
    return {
        "preferred": rates[0],
        "dispreferred": rates[1],
        "difference": estimates.mean(gap, prompts, weight, confidence=confidence).to_dict(),
        "alone": _share(sides[0], alone, prompts, weight, confidence=confidence),
        "alone_share": float(weight[alone].sum() / total),
    }


def _voices(
    codes: NDArray[Any], weights: NDArray[np.float32], names: Sequence[str]
) -> dict[str, Any]:
    """The largest of those that have a name, by the weight of their comparisons."""
    masses = np.bincount(codes, weights=weights, minlength=len(names))
    counts = np.bincount(codes, minlength=len(names))
    named = np.flatnonzero(masses[1:] > 0) + 1
    total = float(masses[named].sum())
    order = sorted(named.tolist(), key=lambda code: (-masses[code], names[code]))
    shares = masses[order] / total if total else np.zeros(0)
    return {
        "named": len(order),
        "unnamed": int(counts[0]),
        "effective": float(np.exp(-(shares * np.log(shares)).sum())) if order else 0.0,
        "largest": [
            {"name": names[code], "comparisons": int(counts[code]), "share": float(share)}
            for code, share in zip(order[:_LISTED], shares, strict=False)
        ],
    }


def _share(
    values: NDArray[np.bool_],
    where: NDArray[np.bool_],
    prompts: Codes,
    weight: NDArray[Any],
    confidence: float = 0.95,
) -> dict[str, Any] | None:
    if not where.any():
        return None
    return estimates.share(
        values[where], prompts[where], weight[where], confidence=confidence
    ).to_dict()


def _none() -> dict[str, Any]:
    return {**Estimate(0.5, 0.0, 1.0, 0, 0).to_dict(), "value": None}


# -- what is said about it -----------------------------------------------------------------


def _of_length(longer: Mapping[str, Any] | None) -> Iterator[Finding]:
    if longer is None or longer["value"] is None:
        return
    level = _level(longer["interval"])
    if level is None:
        return
    area, by = longer["auc"], longer["mean_difference"]
    side = "longer" if longer["value"] > 0.5 else "shorter"
    share = max(longer["value"], 1 - longer["value"])
    yield Finding(
        "length_bias",
        longer["comparisons"],
        value=longer["value"],
        interval=_ends(longer),
        level=level,
        message=f"the {side} side is preferred in {_percent(share)} of the comparisons whose sides "
        f"differ in length, by {abs(by['value']):,.0f} characters on average; length alone has "
        f"an AUC of {area['value']:.3f}",
        details={"mean_difference": by, "auc": area, "by_ratio": longer["by_ratio"]},
    )


def _of_position(position: Mapping[str, Any] | None) -> Iterator[Finding]:
    if position is None or (level := _level(position["interval"])) is None:
        return
    yield Finding(
        "position_bias",
        position["comparisons"],
        value=position["value"],
        interval=_ends(position),
        level=level,
        message=f"whichever stood first is preferred in {_percent(position['value'])} of the "
        "comparisons whose order is known",
        details={"ties": position["ties"]},
    )


def _of_marks(
    kind: str, facts: Facts, marks: Mapping[int, Mapping[str, Any]], most: int
) -> Iterator[Finding]:
    """One finding for a family of marks; its value is that of the mark that is off the most."""
    levels = {
        bit: level
        for bit, mark in marks.items()
        if mark["alone"] and (level := _level(mark["alone"]["interval"]))
    }
    if not levels:
        return
    strong = [b for b, level in levels.items() if level == "warning" and _seen(marks[b])]
    shown = sorted(levels, key=lambda bit: (bit not in strong, -_off(marks[bit])))
    alone = marks[shown[0]]["alone"]
    yield Finding(
        kind,
        alone["comparisons"],
        facts.places(_alone(facts, shown[0], alone["value"] > 0.5), most),
        value=alone["value"],
        interval=_ends(alone),
        level="warning" if strong and kind == "format_bias" else "note",
        message="; ".join(_said(NAMES[bit], marks[bit]["alone"]) for bit in shown),
        details={"marks": [dict(marks[bit]) for bit in shown]},
    )


def _alone(facts: Facts, bit: int, preferred: bool) -> NDArray[np.int64]:
    """Comparisons that show it: the side that has the mark, alone, is the usual one."""
    sides = (facts.preferred_marks & bit != 0, facts.dispreferred_marks & bit != 0)
    has, lacks = sides if preferred else sides[::-1]
    return np.flatnonzero(has & ~lacks & (facts.toward != 0) & (facts.weight > 0))


def _said(name: str, alone: Mapping[str, Any]) -> str:
    return (
        f"where one side alone has {name}, it is preferred in {_percent(alone['value'])} of "
        f"{alone['comparisons']:,} comparisons"
    )


def _of_voices(kind: str, voices: Mapping[str, Any], *, fewest: int) -> Iterator[Finding]:
    if voices["named"] < fewest or not voices["largest"]:
        return
    largest = voices["largest"][0]
    if largest["share"] <= DOMINATES:
        return
    what = "was said by" if kind == "one_annotator" else "comes from"
    yield Finding(
        kind,
        largest["comparisons"],
        value=largest["share"],
        message=f"{_percent(largest['share'])} of what has a name to it {what} '{largest['name']}' "
        f"(of {voices['named']:,})",
        details=dict(voices),
    )


def _level(interval: Sequence[float]) -> Level | None:
    low, high = interval
    if low > 0.5 + MARGIN or high < 0.5 - MARGIN:
        return "warning"
    return "note" if low > 0.5 or high < 0.5 else None


def _seen(mark: Mapping[str, Any]) -> bool:
    return bool(mark["alone_share"] >= SEEN)


def _off(mark: Mapping[str, Any]) -> float:
    return abs(float(mark["alone"]["value"]) - 0.5)


def _ends(estimate: Mapping[str, Any]) -> tuple[float, float]:
    low, high = estimate["interval"]
    return low, high


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
