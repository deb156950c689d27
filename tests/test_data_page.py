"""The page of `prefopt check`: what it says, that it is safe and whole, and how it looks."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.checking.check import check
from prefopt.data.kinds import KINDS
from prefopt.data.visible import MOST, shown, visible
from prefopt.errors import RunError
from prefopt.report import data_page
from prefopt.report.data_findings import cards, title
from tests import planting, test_report
from tests.test_report import HOSTILE, read

Result = dict[str, Any]
DOCS = Path(__file__).resolve().parent.parent / "docs"

RESULT: Result = {
    "rows": 1204,
    "groups": 1130,
    "comparisons": 1190,
    "against": {"prompts": 80, "rows": 90, "unread": 0, "files": ["data/eval.jsonl"]},
    "files": ["data/pairs.jsonl", "data/more.jsonl.gz"],
    "findings": [
        {
            "kind": "identical_sides",
            "level": "error",
            "count": 40,
            "rows": [{"file": "data/pairs.jsonl", "row": row} for row in range(3, 63, 2)],
            "message": "a completion is compared with itself",
            "remedy": "remove the rows: they say nothing about what is better",
        },
        {
            "kind": "length_bias",
            "level": "warning",
            "count": 1100,
            "rows": [],
            "message": "the longer side is preferred in 71.0% of the comparisons",
            "remedy": "even out lengths with `prefopt balance`",
            "value": 0.71,
            "interval": [0.683, 0.737],
            "details": {
                "auc": {"value": 0.66, "interval": [0.63, 0.69], "comparisons": 9, "prompts": 8},
                "by_ratio": [
                    {"from": 1.0, "to": 1.5, "value": 0.55, "interval": [0.5, 0.6]},
                    {"from": 1.5, "to": None, "value": 0.8, "interval": [0.7, 0.9]},
                ],
            },
        },
        {
            "kind": "near_duplicate_pair",
            "level": "note",
            "count": 2,
            "rows": [
                {"file": "data/pairs.jsonl", "row": 9},
                {"file": "data/more.jsonl.gz", "row": 1},
            ],
            "message": "a comparison is nearly the same as another",
            "remedy": "nothing to do",
            "details": {
                "examples": [
                    {"file": "data/pairs.jsonl", "row": 9, "prompt": HOSTILE, "similarity": 0.91,
                     "preferred": "\u05e9\u05dc\u05d5\u05dd \u202e evil\u200b",
                     "dispreferred": "a long text that goes on. " * 60},
                ]
            },
        },
    ],
}  # fmt: skip


def rendered(result: Result = RESULT) -> Any:
    return read(data_page.render(result))


# -- what it says --------------------------------------------------------------------------


def test_the_verdict_the_counts_and_the_files() -> None:
    text = rendered().text
    assert "Mend one thing before you train on this" in text
    assert "1,204 rows give 1,130 prompts with 1,190 comparisons" in text
    assert "compared with 80 prompts of evaluation" in text
    assert "Found: 1 kind of errors, 1 kind of warnings and 1 kind of notes" in text
    assert "Read data/pairs.jsonl data/more.jsonl.gz" in text
    assert "Compared with data/eval.jsonl" in text


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ((), "Nothing was found that is wrong with this data"),
        (("note",), "It can be trained on; nothing graver than a note was found"),
        (("warning", "note"), "It can be trained on, and one thing deserves a look"),
        (("error", "warning"), "Mend one thing before you train on this"),
    ],
)
def test_the_verdict_follows_the_gravest_finding(kept: tuple[str, ...], says: str) -> None:
    findings = [f for f in RESULT["findings"] if f["level"] in kept]
    assert says in rendered({**RESULT, "findings": findings}).text


def test_data_without_rows_or_comparisons_is_not_called_good() -> None:
    empty = {"rows": 0, "groups": 0, "comparisons": 0, "findings": []}
    assert "There are no rows to train on" in rendered(empty).text
    errors = {**RESULT, "comparisons": 0, "groups": 0}
    assert "No comparison can be trained on" in rendered(errors).text


def test_every_finding_has_its_place_its_remedy_and_its_rows() -> None:
    page = rendered()
    assert page.headings[:4] == ["At a glance", "Errors", "Warnings", "Notes"]
    text = page.text
    for finding in RESULT["findings"]:
        assert title(finding["kind"]) in text
    assert "pairs.jsonl : rows 3, 5, 7" in text
    assert "6 more rows" in text and "51, 53, 55, 57, 59, 61" in text  # 24 are open
    assert "The first 30 are listed" in text  # of 40
    assert "more.jsonl.gz : row 1" in text
    assert "0.710 95 % interval 0.683 to 0.737" in text
    assert "AUC 0.660, interval 0.630 to 0.690" in text
    assert "similarity 0.910" in text
    assert ("code", {}) in page.tags and "prefopt balance" in text


def test_files_of_the_same_name_keep_their_folders() -> None:
    result = copy.deepcopy(RESULT)
    result["files"] = ["a/pairs.jsonl", "b/pairs.jsonl"]
    result["findings"][0]["rows"] = [{"file": "b/pairs.jsonl", "row": 3}]
    assert "b/pairs.jsonl : row 3" in rendered(result).text


def test_links_lead_to_the_finding() -> None:
    page = rendered()
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["#finding-0", "#finding-1", "#finding-2"]
    assert {link[1:] for link in links if link} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_details_of_any_shape_are_shown() -> None:
    details = {
        "share": 0.25, "known": True, "none": None, "nothing": [], "words": ["a", "b"],
        "nested": {"x": [1, {"y": 2}]},
        "table": [{"name": "n1", "share": 0.5}, {"name": "n2", "other": [1, 2]}],
        "pairs": {"forum": 3, "survey": 4}, "places": [{"file": "f", "row": 2}],
        "long": "word " * 40, "many": [{"n": number} for number in range(99)],
    }  # fmt: skip
    finding = {**RESULT["findings"][0], "details": details}
    (card,) = cards([finding])
    facts = dict(card.facts)
    assert (facts["Share"], facts["Known"], facts["Words"]) == ("0.250", "yes", "a, b")
    grids = {str(grid.caption): grid for grid in card.grids}
    assert grids["Table"].rows == (("n1", "0.500", "–"), ("n2", "–", "1, 2"))
    assert grids["Pairs"].rows == (("forum", "3"), ("survey", "4"))
    assert (len(grids["Many"].rows), grids["Many"].left_out) == (20, 79)
    assert [name for example in card.examples for name, _ in example.texts] == ["Long"]
    assert "n1" in rendered({**RESULT, "findings": [finding]}).text


def test_only_figures_that_are_there_are_drawn() -> None:
    nothing = {
        "lengths": {"edges": [0, 1], "preferred": [0], "dispreferred": [0]},
        "longer": None, "position": None, "coverage": None, "suspects": None,
        "marks": [{"mark": "a list", "preferred": None, "dispreferred": None, "alone": None}],
        "sources": {"named": 0, "unnamed": 3, "largest": []},
    }  # fmt: skip
    page = rendered({**RESULT, "figures": nothing})
    assert not [tag for tag, _ in page.tags if tag == "figure"]
    tokens = {
        "tokenizer": "t", "limit": 6, "over": 2,
        "quantiles": {"together": {"half": 4}},
        "histogram": {"edges": [0, 4, 8], "counts": [3, 5]},
    }  # fmt: skip
    page = rendered({**RESULT, "figures": {**nothing, "tokens": tokens}})
    assert "half have up to 4, 2 more than 6" in page.text
    # half of 4 completions lie below 8 characters: two bins of one octave each
    lengths = {"edges": [0, 4, 8, 16], "preferred": [0, 2, 2], "dispreferred": [0, 0, 4]}
    page = rendered({**RESULT, "figures": {"lengths": lengths}})
    assert "preferred median about 8" in page.text
    assert "dispreferred median about 11" in page.text  # 8 · √2


# -- anybody's text ------------------------------------------------------------------------


def test_text_from_outside_stays_text() -> None:
    result = copy.deepcopy(RESULT)
    result["files"] = [HOSTILE]
    for finding in result["findings"]:
        finding["message"] = finding["remedy"] = HOSTILE
        finding["rows"] = [{"file": HOSTILE, "row": 1}]
        finding["details"] = {HOSTILE: HOSTILE, "a": [{HOSTILE: HOSTILE}], "b": {HOSTILE: 1}}
    voices = {
        "named": 1,
        "unnamed": 0,
        "largest": [{"name": HOSTILE, "comparisons": 1, "share": 1.0}],
    }
    result["figures"] = {"sources": voices, "annotators": voices, "categories": voices}
    page = rendered(result)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count('<script>alert("x")</script>') >= 12
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_what_cannot_be_seen_is_named() -> None:
    assert visible("a\u202eb") == 'a<span class="unseen">U+202E</span>b'
    assert (
        "U+200B" in visible("x\u200by")
        and "U+0000" in visible("\x00")
        and "U+FEFF" in visible("\ufeff")
    )
    assert visible("a\tb\nc") == "a\tb\nc"
    for seen in ("naïve – “so”", "שלום", "سلام", "漢字", "👩\u200d🚀", "می\u200cخواهم", "x²≤π"):
        assert visible(seen) == seen
    assert visible("\ud83d") == '<span class="unseen">U+D83D</span>'


def test_long_text_folds_and_very_long_text_is_cut() -> None:
    assert shown("short").whole is None
    long = shown("word " * 400)
    assert long.whole is not None and len(long.start) < 400 < len(long.whole)
    assert long.note == "all 2,000 characters"
    lines = shown("\n".join("abcdefghijklmnop"))
    assert lines.start.count("\n") == 9 and lines.whole is not None
    endless = shown("x" * 100_000)
    assert endless.whole is not None and len(endless.whole) == MOST
    assert endless.note == "the first 6,000 of 100,000 characters"


# -- a page of real findings ---------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What `check` says of planted faults, with habits and an evaluation file."""
    folder = tmp_path_factory.mktemp("data")
    planted = planting.plant("plain", rows=700, each=4)
    (folder / "planted.jsonl").write_text(planted.text, encoding="utf-8")
    habit = planting.as_jsonl(planting.skew("length_bias", 400, seed=3))
    (folder / "longer.jsonl").write_text(habit, encoding="utf-8")
    test = folder / "test.jsonl"
    test.write_text(planting.as_jsonl(planting.clean(150, seed=50)), encoding="utf-8")
    return check([folder / "planted.jsonl", folder / "longer.jsonl"], against=[test])


@pytest.fixture(scope="module")
def page(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "check.html"
    data_page.write(result, path)
    return path


look = test_report.look


def test_every_finding_and_every_figure_is_on_the_page(result: Result, page: Path) -> None:
    reader = read(page)
    for finding in result["findings"]:
        assert title(finding["kind"]) in reader.text
    for heading in ("What the two sides look like", "Where it comes from and what it covers"):
        assert heading in reader.headings
    for word in (
        "Lengths",
        "Format and refusals",
        "Sources",
        "Categories",
        "Annotators",
        "Clusters",
    ):
        assert word in reader.text
    assert "forum" in reader.text and "a03" in reader.text


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    test_report.test_nothing_is_loaded_from_anywhere(page)
    test_report.test_ids_are_unique_and_references_lead_somewhere(page)
    test_report.test_colours_are_the_page_s_own(page)


def test_the_same_result_gives_the_same_bytes(result: Result) -> None:
    first = data_page.render(result)
    assert first == data_page.render(copy.deepcopy(result))
    assert len(first.encode("utf-8")) < 600_000


def test_a_page_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "check.html"
    data_page.write(RESULT, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", test_report._full_disk)
    with pytest.raises(RunError, match="disk is full"):
        data_page.write({**RESULT, "findings": []}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_a_phone_and_a_desk(look: Callable[..., dict[str, Any]], width: int) -> None:
    seen = look(width)
    assert seen["overflow"] <= 0
    assert seen["wide"] == []
    assert len(seen["plots"]) >= 3
    assert min(seen["plots"]) > 60
    assert seen["text"] > 9  # pixels: ticks stay legible


def test_it_is_dark_where_the_reader_wants_it_dark(look: Callable[..., dict[str, Any]]) -> None:
    light, dark = look(390), look(390, "--blink-settings=preferredColorScheme=0")
    assert (light["paper"], light["ink"]) == ("rgb(250, 249, 246)", "rgb(29, 33, 39)")
    assert (dark["paper"], dark["ink"]) == ("rgb(20, 22, 26)", "rgb(232, 231, 227)")


# -- docs/data.md --------------------------------------------------------------------------


def test_the_page_of_the_documentation_is_what_its_program_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_data", DOCS / "make_data.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    assert make.page(text) == text, "run `make docs`"
    tables = text.split("\n## Check\n")[1].split("## Split")[0]
    assert re.findall(r"^\| `(\w+)` \|", tables, flags=re.MULTILINE) == sorted(
        KINDS, key=lambda kind: (make.LEVELS.index(KINDS[kind][0]), list(KINDS).index(kind))
    )
