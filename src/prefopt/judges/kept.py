"""Verdicts that are kept: nothing is asked twice, in one call, over restarts, or by two processes.

A folder has two files for each judge, named by a digest of what its verdicts depend on:

    <digest>.json     that identity, for people
    <digest>.jsonl    one line for each question that was asked, added as its verdict came

A line is on disk before anybody hears of the verdict. A line that a process was killed in the
middle of is passed over, and so is whatever else is not whole: every line carries its own digest.
Of two processes with one judge and one folder the second waits until the first has asked, and
then asks the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from prefopt.errors import PrefoptError
from prefopt.judges.judge import Judge, Progress, Question, Verdict
from prefopt.judges.orders import swapped, turned
from prefopt.records import Prompt, prompt_key
from prefopt.runs import explained, write_text

#: questions asked at once of a judge that only gives all its verdicts together
_CHUNK = 32
#: of the transcript of a question that was beyond the budget
NOT_ASKED = {"not_asked": True}
#: how every line begins: with the digest of what follows, so that all of it is known to be there
_HEAD = b'{"sum": "%12b", "line": '
_BODY = len(_HEAD % b"")
T = TypeVar("T")
#: by key: what a line of the file holds
Line = dict[str, Any]


class Kept:
    """A judge that remembers.

    Questions are put to the judge in an order that their texts decide, so a question and the
    same with its answers swapped are one, and neither side gains from how a file was written.

    Args:
        judge: who is asked what is not known.
        folder: where verdicts are kept; made if it is not there.
        budget: most questions that are asked on this account, ever: of a run that was killed,
            what it had asked counts. None for no limit. What is known costs nothing.
        account: whose budget it is; the folder remembers who asked for what.

    Attributes:
        asked: questions (and scores) that the judge was asked, by this object.
        known: questions that needed no asking: kept before, or the same as another one.
        not_asked: questions that were beyond the budget.

    Raises:
        RunError: the folder cannot be used.
    """

    def __init__(
        self,
        judge: Judge,
        folder: str | Path,
        *,
        budget: int | None = None,
        account: str = "",
    ) -> None:
        self.judge = judge
        self.name = judge.name
        self.sees_order = getattr(judge, "sees_order", True)
        self.budget, self.account = budget, account
        self.asked = self.known = self.not_asked = 0
        identity = json.dumps(dict(judge.identity()), sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self._lines = _Lines(Path(folder) / f"{digest}.jsonl")
        self._about = Path(folder) / f"{digest}.json"
        with explained(Path(folder)):
            Path(folder).mkdir(parents=True, exist_ok=True)

    def identity(self) -> Mapping[str, Any]:
        return self.judge.identity()

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """Verdicts, from what is kept where that has them.

        A question beyond the budget has no probability, and `not_asked` in its transcript.
        """
        canonical = [_canonical(question) for question in questions]
        keys = [_key("compare", one.prompt, one.first, one.second) for one in canonical]
        self._learn(keys, canonical, _verdicts, progress)
        verdicts = []
        for question, one, key in zip(questions, canonical, keys, strict=True):
            verdict = _verdict(self._lines.get(key))
            verdicts.append(verdict if one == question else turned(verdict))
        return verdicts

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        """Scores, from what is kept where that has them; None beyond the budget too."""
        keys = [_key("score", *answer) for answer in answers]
        self._learn(keys, answers, _scores, progress)
        return [(self._lines.get(key) or {}).get("score") for key in keys]

    def knows(self, question: Question) -> bool:
        """Whether a question has been asked already."""
        one = _canonical(question)
        self._lines.refresh()
        return self._lines.get(_key("compare", one.prompt, one.first, one.second)) is not None

    def spent(self) -> int:
        """Questions that were ever asked on this account."""
        self._lines.refresh()
        return self._lines.accounts.get(self.account, 0)

    def _learn(
        self, keys: Sequence[str], items: Sequence[Any], ask: Any, progress: Progress | None
    ) -> None:
        """Ask what is not known yet, and keep each answer as it comes."""
        self._lines.refresh()
        if all(self._lines.get(key) is not None for key in keys):
            self.known += len(keys)
            if progress is not None:
                progress(len(keys), len(keys))
            return
        with self._lines.asking():
            if not self._about.exists():
                write_text(self._about, json.dumps(dict(self.identity()), indent=2) + "\n")
            self._ask(keys, dict(zip(keys, items, strict=True)), ask, progress)

    def _ask(
        self, keys: Sequence[str], wanted: Mapping[str, Any], ask: Any, progress: Progress | None
    ) -> None:
        spent = self.spent()
        unknown = [key for key in wanted if self._lines.get(key) is None]
        if self.budget is not None:
            allowed = max(0, self.budget - spent)
            beyond = set(unknown[allowed:])
            unknown = unknown[:allowed]
            self.not_asked += sum(key in beyond for key in keys)
            self.known -= sum(key in beyond for key in keys)
        self.known += len(keys) - len(unknown)
        done = len(keys) - len(unknown)
        if progress is not None:
            progress(done, len(keys))
        with closing(ask(self.judge, [wanted[key] for key in unknown])) as coming:
            for lines in coming:
                self._lines.add(
                    {"key": unknown[position], "account": self.account, **line}
                    for position, line in lines
                )
                self.asked += len(lines)
                done += len(lines)
                if progress is not None:
                    progress(done, len(keys))


def inner(judge: Judge) -> Judge:
    """The judge whose verdicts are kept, or the judge itself."""
    return judge.judge if isinstance(judge, Kept) else judge


def _verdicts(judge: Judge, questions: Sequence[Question]) -> Iterator[list[tuple[int, Line]]]:
    """Lines for verdicts as they come, a few at a time."""
    each = getattr(judge, "compare_each", None)
    for said in _coming(questions, each, judge.compare_all, judge):
        yield [
            (
                position,
                {
                    "probability": verdict.probability,
                    "rationale": verdict.rationale,
                    "order_consistent": verdict.order_consistent,
                    "transcript": dict(verdict.transcript),
                },
            )
            for position, verdict in said
        ]


def _scores(
    judge: Judge, answers: Sequence[tuple[Prompt, str]]
) -> Iterator[list[tuple[int, Line]]]:
    """Lines for scores as they come, a few at a time."""
    each = getattr(judge, "score_each", None)
    for said in _coming(answers, each, judge.score_all, judge):
        yield [(position, {"score": score}) for position, score in said]


def _coming(items: Sequence[T], each: Any, ask: Any, judge: Judge) -> Iterator[list[Any]]:
    """What a judge says: one by one if it hands that over, else a chunk at a time."""
    if each is not None:
        with closing(each(items)) as coming:
            yield from ([one] for one in coming)
        return
    size = getattr(judge, "chunk", _CHUNK)
    numbered = iter(enumerate(items))
    while chunk := list(islice(numbered, size)):
        said = ask([item for _, item in chunk])
        yield list(zip((position for position, _ in chunk), said, strict=True))


def _canonical(question: Question) -> Question:
    """The question in the order in which it is asked, which its texts decide."""
    first, second = (_digest(question.prompt, side) for side in (question.first, question.second))
    return question if first <= second else swapped(question)


def _verdict(line: Line | None) -> Verdict:
    if line is None:
        return Verdict(None, transcript=dict(NOT_ASKED))
    return Verdict(
        line["probability"], line["rationale"], line["order_consistent"], line["transcript"]
    )


def _digest(prompt: Prompt, text: str) -> bytes:
    content = prompt_key(prompt) + text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def _key(what: str, prompt: Prompt, *texts: str) -> str:
    content = b"".join(_digest(prompt, text) for text in texts)
    return hashlib.blake2b(what.encode() + content, digest_size=16).hexdigest()


# -- the file ------------------------------------------------------------------------------


class _Lines:
    """A file of lines that several processes add to at once.

    Attributes:
        accounts: lines of each account.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Line] = {}
        self._read = 0  # bytes of the file that are known
        self.accounts: dict[str, int] = {}

    def get(self, key: str) -> Line | None:
        return self._known.get(key)

    def refresh(self) -> None:
        """Read what has been added since, by whomever."""
        if not self._path.exists():
            return
        with explained(self._path), open(self._path, "rb") as handle:
            handle.seek(self._read)
            whole, newline, _ = handle.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            self._take(line)

    def add(self, lines: Iterable[Line]) -> None:
        """Write lines; they are on disk when this returns."""
        raw = b"".join(map(_written, lines))
        with _locked(self._path) as handle, explained(self._path):
            # A process that was killed while it wrote has left a line without an end.
            if handle.seek(0, os.SEEK_END) and not _ends_a_line(handle.fileno()):
                raw = b"\n" + raw
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        self.refresh()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Hold the right to ask, which one process has at a time; a killed one gives it up."""
        with _locked(self._path.with_suffix(".lock")):
            yield

    def _take(self, raw: bytes) -> None:
        body = raw[_BODY:-1]
        if raw[:_BODY] != _HEAD % _sum(body) or raw[-1:] != b"}":
            return  # not whole: its question will be asked again
        line = json.loads(body)
        if line["key"] not in self._known:
            self._known[line["key"]] = line
            self.accounts[line["account"]] = self.accounts.get(line["account"], 0) + 1


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    import fcntl

    # Not around what the block does: its errors are its own.
    with explained(path):
        handle = open(path, "ab+")  # noqa: SIM115 (held until the end)
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed
        yield handle


def _ends_a_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, 1, size - 1) == b"\n"


def _written(line: Line) -> bytes:
    body = json.dumps(line, default=_unplain).encode()  # ASCII, whatever a model wrote
    return _HEAD % _sum(body) + body + b"}\n"


def _sum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=6).hexdigest().encode()


def _unplain(value: Any) -> Any:
    raise PrefoptError(
        "a judge's transcript must be plain JSON", field="transcript", value=value,
        remedy="give only text, numbers, lists and mappings with it",
    )  # fmt: skip
