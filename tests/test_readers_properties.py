"""Whatever a file holds, a reader gives groups or a `DataError`, and a command no traceback.

Hypothesis throws arbitrary bytes, arbitrary JSON and good rows with one part replaced at the
readers, at `check` and at the command line, always the same ones.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefopt import errors
from prefopt.cli.app import run
from prefopt.data.checking.check import check
from prefopt.data.formats import read_groups
from prefopt.data.kinds import KINDS
from prefopt.data.layouts import LAYOUTS, recognise
from prefopt.errors import DataError, PrefoptError
from prefopt.records import Group

Row = dict[str, Any]


def profile(examples: int) -> settings:
    """The same examples each time, and no clock that decides what fails."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def user(content: Any) -> Row:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Row:
    return {"role": "assistant", "content": content}


#: a good row of every layout, with the columns that it may have
GOOD: dict[str, Row] = {
    "prefopt": {
        "prompt": [user("q")],
        "completions": [{"text": "a", "score": 1.0, "source": "m"}, {"text": "b"}],
        "comparisons": [{"preferred": 0, "dispreferred": 1, "probability": 0.8, "weight": 2.0}],
        "labels": [{"completion": 1, "desirable": False, "weight": 1.0}],
        "votes": [{"first": 0, "second": 1, "choice": "tie", "annotator": "x"}],
        "source": "s",
        "meta": {"category": "c"},
    },
    "ranked": {"prompt": "q", "completions": ["a", "b", "c"], "ranking": [2, 1, 2]},
    "votes": {
        "prompt": "q",
        "completions": ["a", "b"],
        "votes": [{"pair": [0, 1], "choice": "first", "annotator": 7}, "tie"],
    },
    "ultrafeedback": {
        "instruction": "q",
        "completions": [
            {"model": "m", "response": "a", "overall_score": 7.5},
            {"model": "n", "response": "b", "annotations": {"x": {"Rating": "4"}}},
        ],
    },
    "pairs": {
        "prompt": [{"role": "system", "content": "s"}, user("q")],
        "chosen": [assistant("a")],
        "rejected": [assistant("b")],
        "probability": 0.75,
        "weight": 1.5,
        "score_chosen": 7,
        "score_rejected": 3.5,
        "source": "s",
        "category": "safety",
        "annotator": "x",
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
        "system": "s",
    },
    "hh": {
        "chosen": "\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nAssistant: b",
    },
    "implicit_pairs": {"chosen": "the sky is blue", "rejected": "the sky is grey"},
    "arena": {
        "conversation_a": [user("q"), assistant("a")],
        "conversation_b": [user("q"), assistant("b")],
        "model_a": "m",
        "model_b": "n",
        "winner": "model_a",
        "judge": ["x", "y"],
        "turn": 1,
    },
    "unpaired": {"prompt": "q", "completion": "a", "label": True, "weight": 2.0},
    "demonstrations": {"prompt": "q", "completion": [assistant("a")]},
    "messages": {"messages": [user("q"), assistant("a")], "system": "s"},
}


def test_there_is_a_good_row_of_every_layout(tmp_path: Path) -> None:
    assert {layout.name for layout in LAYOUTS} <= set(GOOD)
    for name, row in GOOD.items():
        assert recognise(row).name == name
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
        assert len(list(read_groups(tmp_path / f"{name}.jsonl"))) == 1


# -- what is thrown ------------------------------------------------------------------------

_TEXT = st.text(max_size=12) | st.sampled_from(
    ("", " ", "\x00", "\u202e\u200b", "\ud83d", "Human:", "<|im_end|>", "1e400", "a\n\nAssistant:")
)
_SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from((2**63, 2**64, -(10**40), 10**400, 0.5, -0.0, 1e308))
    | st.floats()
    | _TEXT
)
_ANY = st.recursive(
    _SCALAR,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            _TEXT | st.sampled_from(("role", "content", "from", "value", "text", "score", "type")),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_COLUMN = st.sampled_from(sorted({column for row in GOOD.values() for column in row}))
_ROW = st.dictionaries(_COLUMN | _TEXT, _ANY, max_size=6)

Place = tuple[Any, ...]


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """The path to everything inside a row."""
    if path:
        yield path
    parts: Any = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for key, part in parts:
        yield from places(part, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> Row:
    """A good row of some layout, of which one to three parts are replaced, dropped or doubled."""
    row = copy.deepcopy(draw(st.sampled_from(list(GOOD.values()))))
    for _ in range(draw(st.integers(1, 3))):
        options = list(places(row))
        if not options:
            break
        *path, last = draw(st.sampled_from(options))
        inside: Any = row
        for key in path:
            inside = inside[key]
        what = draw(st.sampled_from(("replace", "replace", "drop", "double", "wrap")))
        if what == "replace":
            inside[last] = draw(_ANY)
        elif what == "drop":
            del inside[last]
        elif what == "wrap":
            inside[last] = [inside[last]]
        elif isinstance(inside, list):
            inside.append(copy.deepcopy(inside[last]))
        else:
            inside[draw(_COLUMN)] = copy.deepcopy(inside[last])
    return row


_LINE = st.one_of(
    mutated().map(json.dumps),
    mutated().map(lambda row: json.dumps(row)[:-7]),
    _ROW.map(json.dumps),
    _ANY.map(json.dumps),
    st.sampled_from([json.dumps(row) for row in GOOD.values()]),
    st.sampled_from(("", "  ", "{", "[", "{}", "[]", "[[" * 6000, '{"a":' * 6000, "NaN")),
)
#: whole files: lines of all sorts, arrays, a document with `data`, and plain bytes
_CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(_LINE, min_size=1, max_size=5).map(lambda lines: "\n".join(lines).encode()),
    st.lists(mutated(), max_size=4).map(lambda rows: json.dumps(rows).encode()),
    st.lists(_ANY, max_size=4).map(lambda rows: json.dumps({"data": rows}).encode()),
    st.lists(mutated(), min_size=1, max_size=3).map(
        lambda rows: b"\xef\xbb\xbf" + json.dumps(rows[0]).encode() + b"\r\n\xff\xfe\n"
    ),
)


def as_they_are(content: bytes) -> bytes:
    return content


def cut(content: bytes) -> bytes:
    return gzip.compress(content)[:-9]


def zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.compress(content)


#: how a file's name ends, and what is done to its content
CONTAINERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "jsonl": (".jsonl", as_they_are),
    "json": (".json", as_they_are),
    "parquet": (".parquet", as_they_are),
    "jsonl.gz": (".jsonl.gz", gzip.compress),
    "json.gz": (".json.gz", gzip.compress),
    "cut.gz": (".jsonl.gz", cut),
    "not.gz": (".jsonl.gz", as_they_are),
    "jsonl.zst": (".jsonl.zst", zstd),
    "not.zst": (".jsonl.zst", as_they_are),
    "parquet.gz": (".parquet.gz", gzip.compress),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test, whose files replace each other."""
    return tmp_path_factory.mktemp("thrown")


def stored(folder: Path, content: bytes, container: str) -> Path:
    suffix, pack = CONTAINERS[container]
    path = folder / f"rows{suffix}"
    path.write_bytes(pack(content))
    return path


# -- what must come of it ------------------------------------------------------------------


def read(path: Path) -> None:
    """Groups or a `DataError` from the readers; the same rows refused either way."""
    reader = read_groups(path, on_error="skip")
    groups = list(reader)
    assert all(isinstance(group, Group) for group in groups)
    assert set(reader.skipped) <= set(KINDS)
    error = refusal(path)
    if error is None:
        assert list(read_groups(path)) == groups
        assert not reader.skipped
        return
    assert error.kind in KINDS
    assert error.file == str(path)
    assert error.remedy
    assert json.dumps(error.to_dict(), ensure_ascii=False)
    assert reader.skipped.total() > 0


def refusal(path: Path) -> DataError | None:
    """The error of reading strictly; nothing else may be raised."""
    try:
        list(read_groups(path))
    except DataError as error:
        return error
    return None


def checked(path: Path) -> dict[str, Any]:
    """What `check` finds, which is plain JSON in words of the table."""
    result = check(path)
    assert {"rows", "groups", "comparisons", "findings"} <= set(result)
    for finding in result["findings"]:
        assert finding["kind"] in KINDS
        assert finding["count"] > 0 or "value" in finding
        assert finding["remedy"] and finding["message"]
        assert {place["file"] for place in finding["rows"]} <= {str(path)}
    json.dumps(result, allow_nan=False).encode("utf-8")
    return result


def agree(path: Path) -> None:
    """A reader refuses a file if and only if `check` finds an error in it that is a refusal."""
    reader = read_groups(path, on_error="skip")
    list(reader)
    found = {finding["kind"]: finding["count"] for finding in checked(path)["findings"]}
    for kind, count in reader.skipped.items():
        assert found.get(kind, 0) >= count, (kind, found)


def called(*arguments: str) -> dict[str, Any]:
    """What a command says as JSON: it ends with 0, 1 or 2 and never with a traceback."""
    out, complaints = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(complaints):
        code = run([*arguments, "--json"])
    assert code in (0, 1, 2)
    assert "Traceback" not in complaints.getvalue()
    (line,) = out.getvalue().splitlines()
    said = json.loads(line)
    if "error" in said:
        kind = getattr(errors, said["error"]["type"], None)
        assert isinstance(kind, type) and issubclass(kind, PrefoptError), said["error"]
        assert code > 0
    return dict(said)


_containers = st.sampled_from(sorted(CONTAINERS))


@profile(400)
@given(content=_CONTENT, container=_containers)
@example(content=b"", container="jsonl")
@example(content=b"PAR1", container="parquet")
@example(content=b"\x1f\x8b", container="not.gz")
@example(content=b"[" * 100_000, container="json")
@example(content=b'{"data": [1, {}]', container="json")
def test_a_reader_gives_groups_or_a_data_error(
    folder: Path, content: bytes, container: str
) -> None:
    read(stored(folder, content, container))


@profile(150)
@given(content=_CONTENT, container=_containers)
@example(content=b"", container="jsonl")
@example(content=b"\n\n", container="json")
def test_check_finds_what_a_reader_refuses(folder: Path, content: bytes, container: str) -> None:
    agree(stored(folder, content, container))


@profile(250)
@given(rows=st.lists(mutated(), min_size=1, max_size=3))
def test_a_row_with_a_broken_part_is_refused_or_read(folder: Path, rows: list[Row]) -> None:
    path = stored(folder, "\n".join(map(json.dumps, rows)).encode(), "jsonl")
    read(path)
    agree(path)


@profile(60)
@given(content=_CONTENT, container=_containers)
def test_the_command_ends_without_a_traceback(folder: Path, content: bytes, container: str) -> None:
    path = stored(folder, content, container)
    called("check", str(path))
    strict = called("check", str(path), "--fail-on", "note")
    assert "findings" in strict or "error" in strict


@profile(60)
@given(rows=st.lists(mutated() | _ROW, min_size=1, max_size=4), damage=st.data())
def test_parquet_files_whole_and_damaged(folder: Path, rows: list[Row], damage: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / "rows.parquet")
    except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError):
        return  # columns that Parquet cannot hold
    path = folder / "rows.parquet"
    read(path)
    agree(path)
    whole = bytearray(path.read_bytes())
    place = damage.draw(st.integers(4, len(whole) - 1))
    path.write_bytes(whole[:place])
    with pytest.raises(DataError):
        list(read_groups(path))
    checked(path)


@profile(40)
@given(contents=st.lists(_CONTENT, min_size=2, max_size=3))
def test_a_bad_file_leaves_the_others_readable(folder: Path, contents: list[bytes]) -> None:
    many = folder / "many"
    many.mkdir(exist_ok=True)
    for place, content in enumerate(contents):
        (many / f"{place}.jsonl").write_bytes(content)
    (many / "good.jsonl").write_text(json.dumps(GOOD["implicit_pairs"]))
    reader = read_groups(many, on_error="skip")
    assert any(group.prompt == "the sky is" for group in reader)
    result = check(many)
    assert result["rows"] >= 1 and result["groups"] >= 1
