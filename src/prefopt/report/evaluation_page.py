"""What `prefopt evaluate` found → one page that needs nothing but itself.

No script, no font, no network. Names of policies and categories are anybody's text in any script,
so what stands beside them is drawn by the page itself; only lengths are a drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.data.visible import visible
from prefopt.evaluation.matches import Match, between
from prefopt.report.evaluation_examples import Examples, examples
from prefopt.report.evaluation_figures import by_length
from prefopt.report.figures import Plot
from prefopt.report.pages import fill
from prefopt.report.summary import Tile
from prefopt.report.words import counted, number, percent
from prefopt.runs import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

_CLEAR = 0.05  # p below which a difference is called one
_PLOTS = 6  # comparisons whose lengths are drawn


@dataclass(frozen=True, slots=True)
class Track:
    """A value with its interval on a line, as places in percent of its width."""

    dot: str
    left: str
    width: str
    text: str
    ends: str


@dataclass(frozen=True, slots=True)
class Line:
    """A name, what is said of it, and where it lies."""

    name: Markup
    note: str
    track: Track | None
    text: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """One policy against another."""

    title: Markup
    policy: Markup
    baseline: Markup
    shares: tuple[tuple[str, str, str], ...]
    spoken: str
    rates: tuple[Line, ...]
    facts: tuple[tuple[str, str], ...]
    categories: tuple[tuple[Markup, tuple[Line, ...], str], ...]
    plot: Plot | None
    examples: Examples


def write(result: Mapping[str, Any], matches: Sequence[Match], path: str | Path) -> None:
    """Write the page.

    Args:
        result: as `prefopt evaluate --json` prints it.
        matches: that it is about; texts and lengths come from here.
        path: of the page; replaced if it exists.

    Raises:
        RunError: the page cannot be written. Nothing is left half-written.
    """
    write_text(path, render(result, matches))


def render(result: Mapping[str, Any], matches: Sequence[Match]) -> str:
    """The page as text; a pure function of the result and the matches."""
    return fill("evaluation.html.j2", _page(result, matches))


def _page(result: Mapping[str, Any], matches: Sequence[Match]) -> dict[str, Any]:
    found = result["comparisons"]
    cards = [_card(place, one, matches) for place, one in enumerate(found)]
    return {
        "headline": _headline(result),
        "lede": _lede(result),
        "judge": visible(result["judge"]["name"]) if result["judge"] else None,
        "tiles": _tiles(found[0]) if len(found) == 1 else [],
        "cards": cards,
        "ranking": _ranking(result["ranking"]) if result["ranking"] else None,
        "unranked": visible(result["unranked"]) if result["unranked"] else None,
        "paired": _paired(result),
        "many": max((len(by["rows"]) for one in found for by in one["categories"]), default=0),
        "policies": [
            (visible(row["policy"]), counted(row["completions"], "answer"),
             counted(row["prompts"], "prompt"), f"{row['mean_length']:,.0f}")
            for row in result["policies"]
        ],
        "unmatched": result["unmatched"],
    }  # fmt: skip


# -- the beginning -------------------------------------------------------------------------


def _headline(result: Mapping[str, Any]) -> Markup:
    from markupsafe import Markup

    ranking, found = result["ranking"], result["comparisons"]
    if ranking:
        best = ranking["policies"][0]
        sure = best["rank_interval"][1] == 1
        words = "{} ranks first of {}" if sure else "{} leads {} policies, but not for sure"
        return Markup(words).format(visible(best["policy"]), len(ranking["policies"]))
    if len(found) > 1:
        return Markup("{} policies, and no order of all").format(len(result["policies"]))
    one = found[0]
    names = visible(one["policy"]), visible(one["baseline"])
    if one["rate"] is None:
        return Markup("No verdict on {} and {} could be read").format(*names)
    if one["p"] >= _CLEAR:
        return Markup("No clear difference between {} and {}").format(*names)
    first, second = names if one["rate"]["value"] > 0.5 else names[::-1]
    return Markup("{} is preferred to {}").format(first, second)


def _lede(result: Mapping[str, Any]) -> Markup:
    from markupsafe import Markup

    prompts = max((one["prompts"] for one in result["comparisons"]), default=0)
    words = Markup("{} between {} on {}").format(
        counted(result["matches"], "match").replace("matchs", "matches"),
        f"{len(result['policies'])} policies", counted(prompts, "prompt"),
    )  # fmt: skip
    if result["judge"]:
        words += Markup(", judged by {}").format(visible(result["judge"]["name"]))
    return words + Markup(".")


def _tiles(one: Mapping[str, Any]) -> list[Tile]:
    if one["rate"] is None:
        return []
    tiles = [_tile("win rate", one["rate"])]
    tiles.append(_tile("by length alone", one["length"]["longest_wins"]))
    fit = one["length_controlled"]
    if fit["rate"] is not None:
        ends = "95 %: {:.0f} to {:.0f}".format(*(100 * end for end in fit["interval"]))
        tiles.append(Tile("length-controlled", percent(fit["rate"]), f"{ends}; approximate"))
    if one["order"] is not None:
        order = one["order"]
        note = f"{number(order['inconsistent'])} of {number(order['asked'])} verdicts"
        tiles.append(Tile("flips with the order", percent(order["rate"]["value"]), note))
    if one["unreadable"]:
        tiles.append(Tile("unreadable", number(one["unreadable"]), "in no rate"))
    return tiles


def _tile(label: str, found: Mapping[str, Any]) -> Tile:
    ends = found["interval"]
    note = "one prompt: no interval" if ends is None else "95 %: {:.0f} to {:.0f}".format(
        *(100 * end for end in ends))  # fmt: skip
    return Tile(label, percent(found["value"]), note)


# -- one against another -------------------------------------------------------------------


def _card(place: int, one: Mapping[str, Any], matches: Sequence[Match]) -> Card:
    from markupsafe import Markup

    here = between(matches, one["policy"], one["baseline"])
    read = one["wins"] + one["ties"] + one["losses"]
    policy, baseline = visible(one["policy"]), visible(one["baseline"])
    shares = tuple(
        (kind, f"{100 * one[count] / read:.2f}%" if read else "0%", f"{number(one[count])} {word}")
        for kind, count, word in (("won", "wins", "won"), ("tied", "ties", "tied"),
                                  ("lost", "losses", "lost"))
    )  # fmt: skip
    return Card(
        Markup("{} against {}").format(policy, baseline),
        policy, baseline, shares, ", ".join(text for *_, text in shares),
        tuple(_rates(one)), tuple(_facts(one)),
        tuple(_category(by) for by in one["categories"]),
        by_length(here, f"length-{place}") if place < _PLOTS else None,
        examples(here),
    )  # fmt: skip


def _rates(one: Mapping[str, Any]) -> list[Line]:
    from markupsafe import Markup

    if one["rate"] is None:
        return []
    lines = [
        Line(Markup("win rate"), "wins, and ties half", _share(one["rate"])),
        Line(Markup("by length alone"), "if the longer one always won",
             _share(one["length"]["longest_wins"]), mark="other"),
    ]  # fmt: skip
    fit = one["length_controlled"]
    if fit["rate"] is not None:
        track = _track(fit["rate"], fit["interval"], 0.0, 1.0, percent)
        lines.append(Line(Markup("length-controlled"), "if both were as long; approximate", track))
    if one["soft"]["value"] != one["rate"]["value"]:
        note = "mean probability of the judge"
        lines.append(Line(Markup("soft win rate"), note, _share(one["soft"])))
    return lines


def _facts(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Pairs", f"{number(one['pairs'])} on {counted(one['prompts'], 'prompt')}"),
        ("Permutation test", "–" if one["p"] is None else _p(one["p"])),
    ]
    if one["identical"]:
        facts.append(("Equal texts", f"{number(one['identical'])} pairs, which are ties"))
    if one["length"]:
        length = one["length"]
        facts.append((
            "Characters", f"{length['mean']:,.0f} against {length['baseline_mean']:,.0f}"
        ))  # fmt: skip
        if takes := length["judge_takes_longer"]:
            share = percent(takes["value"])
            facts.append(("The judge takes the longer one", f"{share} of what it decides"))
        if one["length_controlled"]["rate"] is None:
            facts.append(("Length-controlled", f"not fitted: {one['length_controlled']['reason']}"))
    if order := one["order"]:
        facts.append((
            "Flips with the order",
            f"{number(order['inconsistent'])} of {number(order['asked'])}: "
            f"{number(order['first_shown'])} for the first shown, "
            f"{number(order['second_shown'])} for the other",
        ))  # fmt: skip
    if one["unreadable"] or one["not_asked"]:
        said = f"{number(one['unreadable'])} unreadable"
        beyond = f", {number(one['not_asked'])} beyond the budget" if one["not_asked"] else ""
        facts.append(("No verdict", said + beyond))
    return facts


def _category(by: Mapping[str, Any]) -> tuple[Markup, tuple[Line, ...], str]:
    lines = tuple(
        Line(
            visible(row["value"]),
            f"{counted(row['pairs'], 'pair')}, adjusted {_p(row['p_holm'])}"
            if row["rate"] else f"{counted(row['pairs'], 'pair')} without a verdict",
            _share(row["rate"]) if row["rate"] else None,
        )
        for row in by["rows"]
    )  # fmt: skip
    more = f"and {number(by['left_out'])} more" if by["left_out"] else ""
    return visible(by["column"]), lines, more


# -- several -------------------------------------------------------------------------------


def _ranking(found: Mapping[str, Any]) -> dict[str, Any]:
    ends = [end for row in found["policies"] for end in row["interval"]]
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low or 1.0)
    lines = []
    for row in found["policies"]:
        first, last = row["rank_interval"]
        places = f"rank {first}" if first == last else f"rank {first} to {last}"
        note = f"{places}; beats the others {percent(row['win_rate'])}"
        track = _track(row["score"], row["interval"], low - room, high + room, _score)
        lines.append(Line(visible(row["policy"]), note, track))
    return {"lines": lines, "ridge": found["ridge"], "samples": found["samples"],
            "prompts": number(found["prompts"])}  # fmt: skip


def _paired(result: Mapping[str, Any]) -> list[Line]:
    from markupsafe import Markup

    lines = []
    for row in (*result["paired"], *result["against"]):
        names = [visible(row[name]) for name in ("policy", "other", "baseline")]
        other = "other_baseline" in row
        words = Markup("{}, and {} of the other run" if other else "{} and {}, each against {}")
        note = (
            f"{counted(row['prompts'], 'prompt')}, better on {number(row['better'])}, worse on "
            f"{number(row['worse'])}; permutation test {_p(row['p'])}, sign test "
            f"{_p(row['sign_p'])}"
        )
        track = _track(row["difference"], row["interval"], -1.0, 1.0, _points)
        lines.append(Line(words.format(*names), note, track))
    return lines


# -- numbers -------------------------------------------------------------------------------


def _share(found: Mapping[str, Any]) -> Track:
    return _track(found["value"], found["interval"], 0.0, 1.0, percent)


def _track(value: float, ends: Sequence[float] | None, low: float, high: float, word: Any) -> Track:
    def place(number: float) -> float:
        return min(100.0, max(0.0, 100 * (number - low) / (high - low)))

    if ends is None:
        return Track(f"{place(value):.2f}%", "0%", "0%", word(value), "")
    left, right = place(ends[0]), place(ends[1])
    said = f"{word(ends[0])} to {word(ends[1])}".replace(" points", "")
    return Track(f"{place(value):.2f}%", f"{left:.2f}%", f"{right - left:.2f}%", word(value), said)


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points".replace("-", "−")


def _score(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(value: float | None) -> str:
    return "–" if value is None else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
