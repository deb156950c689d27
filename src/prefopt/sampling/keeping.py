"""A file of samples that is written while they come, and is whole when it has its name.

    samples.jsonl            the result: appears when every prompt is answered
    samples.jsonl.manifest   JSON: who answered, how, what came of it; written last
    .samples.jsonl.part      meanwhile: what is asked, then a line for each answered prompt

A process that is killed loses the prompts it was answering, and the same command goes on after
the others. Another command is refused, and told what differs. Where a prompt was refused the third
file stays, and the same command asks for that prompt again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from prefopt.data.formats import write_groups
from prefopt.errors import PrefoptError, RunError
from prefopt.records import Completion, Group, Prompt, prompt_key, prompt_to_json
from prefopt.runs import explained, fingerprint_file, versions, write_text
from prefopt.sampling.failures import ServerError, in_order
from prefopt.sampling.sampler import Sample, Sampler
from prefopt.sampling.settings import Settings

Duplicates = Literal["keep", "drop"]
#: called with (prompts answered, of how many)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of it.

    Attributes:
        prompts, completions: in the file.
        cut: completions that did not end in time.
        duplicates: completions whose text the prompt had before; left out if so asked.
        from_before: prompts that were answered by an earlier process.
        refusals: `prompt` and `why` of each that alone cannot be answered, and is not in the file.
    """

    prompts: int
    completions: int
    cut: int
    duplicates: int
    from_before: int
    refusals: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        samples: Sequence[Sequence[Sample]],
        before: int = 0,
        refused: Mapping[Prompt, PrefoptError] | None = None,
    ) -> Answered:
        """Counted."""
        every = [sample for own in samples for sample in own]
        distinct = sum(len({sample.text for sample in own}) for own in samples)
        return cls(
            len(groups),
            sum(len(group.completions) for group in groups),
            sum(sample.finish == "length" for sample in every),
            len(every) - distinct,
            before,
            tuple(
                {"prompt": prompt_to_json(p), "why": why.message}
                for p, why in (refused or {}).items()
            ),
        )


def answer_into(
    out: str | Path,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    duplicates: Duplicates = "keep",
    overwrite: bool = False,
    skip_refused: bool = False,
    progress: Progress | None = None,
) -> Answered:
    """Have prompts answered into a file; what it already has is not asked again.

    Args:
        out: ends with .jsonl, .jsonl.gz or .jsonl.zst.
        sampler: who answers.
        prompts: distinct ones.
        settings: how.
        duplicates: whether a prompt keeps equal texts.
        overwrite: forget what is there and begin anew.
        skip_refused: go on without prompts that alone cannot be answered, while others can.

    Raises:
        RunError: the file holds something else, another process writes it, or it cannot be
            written.
        ServerError: the server failed for good; what was answered is kept.
        DataError: a prompt does not fit into the policy on this machine.
    """
    file = _File(Path(out))
    keys = [prompt_key(prompt).hex() for prompt in prompts]
    asked = _asked(keys, sampler, settings, duplicates)
    with file.held():
        if overwrite:
            file.forget()
        if (finished := file.finished(asked)) is not None:
            return Answered(**{**finished, "from_before": len(prompts)})
        known = file.begin(asked)
        before = sum(key in known for key in keys)
        refused: dict[Prompt, PrefoptError] = {}
        samples = _filled(
            file, known, sampler, dict(zip(keys, prompts, strict=True)), settings, progress,
            refused if skip_refused else None,
        )  # fmt: skip
        refused = in_order(refused, prompts)
        groups = to_groups(prompts, samples, sampler.name, duplicates)
        answered = Answered.of(groups, samples, before, refused)
        file.finish(groups, asked, answered)
        return answered


def samples_in(
    folder: str | Path,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    progress: Progress | None = None,
) -> list[list[Sample]]:
    """The samples of prompts, kept in a folder: what was answered before is not asked again.

    A file belongs to one sampler and one way of asking, and is named by a digest of both: a
    policy that has changed finds nothing there. Of two processes the second waits for the first.

    Args:
        folder: made if it is not there.
        sampler, prompts, settings, progress: as for `answer_into`.

    Raises:
        RunError: the folder cannot be used.
        ServerError: the server failed for good; what was answered is kept.
    """
    asked = {"sampler": dict(sampler.identity()), "settings": settings.to_dict()}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]
    path = Path(folder) / f"{digest}.jsonl"
    file = _File(path, part=path)
    with file.held(wait=True):
        wanted = {prompt_key(prompt).hex(): prompt for prompt in prompts}
        return _filled(file, file.begin(asked), sampler, wanted, settings, progress)


def _filled(
    file: _File,
    known: dict[str, list[Sample]],
    sampler: Sampler,
    wanted: Mapping[str, Prompt],
    settings: Settings,
    progress: Progress | None,
    refused: dict[Prompt, PrefoptError] | None = None,
) -> list[list[Sample]]:
    """The samples of all wanted prompts; those that are not known are asked, and kept.

    With `refused`, prompts that alone cannot be answered have none, and it says why.
    """
    missing = [key for key in wanted if key not in known]
    done = len(wanted) - len(missing)

    def count(further: int) -> None:
        nonlocal done
        done += further
        if progress is not None:
            progress(done + len(refused or ()), len(wanted))

    def keep(position: int, samples: list[Sample]) -> None:
        file.add(missing[position], samples)
        known[missing[position]] = samples
        count(1)

    def leave_out(position: int, error: PrefoptError) -> None:
        assert refused is not None
        refused[wanted[missing[position]]] = error
        count(0)

    count(0)
    asked = [wanted[key] for key in missing]
    try:
        sampler.sample_all(asked, settings, keep, None if refused is None else leave_out)
    except ServerError as error:
        error.message += f" ({done} of {len(wanted)} prompts are answered, and kept)"
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {done} of {len(wanted)} prompts are answered, and kept"
        ) from None
    return [known.get(key, []) for key in wanted]


def _asked(
    keys: Sequence[str], sampler: Sampler, settings: Settings, duplicates: Duplicates
) -> dict[str, Any]:
    """All that decides what is in the file."""
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()
    return {
        "sampler": dict(sampler.identity()),
        "settings": settings.to_dict(),
        "prompts": {"count": len(keys), "digest": digest},
        "duplicates": duplicates,
    }


def to_groups(
    prompts: Sequence[Prompt],
    samples: Sequence[Sequence[Sample]],
    source: str,
    duplicates: Duplicates = "keep",
) -> list[Group]:
    """Groups of the completions; how they finished is in `meta`, unless all did by themselves.

    Prompts without any are left out.
    """
    groups = []
    for prompt, own in zip(prompts, samples, strict=True):
        if not own:
            continue
        kept = list(own) if duplicates == "keep" else _distinct(own)
        finishes = [sample.finish for sample in kept]
        groups.append(
            Group(
                prompt,
                tuple(Completion(sample.text, source=source) for sample in kept),
                meta={"finish": finishes} if set(finishes) != {"end"} else {},
            )
        )
    return groups


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.text, sample)
    return list(first.values())


class _File:
    """The file, its manifest, and what is there of it meanwhile."""

    def __init__(self, out: Path, part: Path | None = None) -> None:
        self.out = out
        self.manifest = out.with_name(f"{out.name}.manifest")
        self.part = part or out.with_name(f".{out.name}.part")
        self.goes_on = False  # prompts are left that may be asked again
        self._handle: IO[bytes] | None = None

    @contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other processes from writing it; refuse to begin, or wait, while one does."""
        with explained(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            handle = open(self.part, "ab")  # noqa: SIM115 (held until the end)
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise RunError(
                    "another process is writing this file",
                    file=str(self.out),
                    remedy="wait for it, stop it, or choose another --out",
                ) from None
            self._handle = handle
            try:
                yield
            finally:
                with suppress(OSError):
                    whole = self.manifest.exists() and not self.goes_on
                    if self.part.stat().st_size == 0 or whole:
                        self.part.unlink()

    def forget(self) -> None:
        """Begin anew; the manifest goes first, so that nothing looks finished."""
        with explained(self.out):
            self.manifest.unlink(missing_ok=True)
            self.out.unlink(missing_ok=True)
            os.truncate(self.part, 0)

    def finished(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """What came of it, if all of it is there.

        Raises:
            RunError: something else is.
        """
        if not self.out.exists():
            self.manifest.unlink(missing_ok=True)  # its file was taken away
            return None
        if not self.manifest.exists():
            if self.part.stat().st_size:  # killed between the two: it will be written again
                return None
            raise self._in_the_way("there is a file that no sampling finished")
        with explained(self.manifest):
            document = json.loads(self.manifest.read_text(encoding="utf-8"))
        refused, kept = document["result"].get("refusals"), self.part.stat().st_size
        self.goes_on = bool(refused and kept)
        self._refuse_other(document["asked"], asked)
        if document["file"] != fingerprint_file(self.out):
            raise self._in_the_way("the file was changed since it was sampled")
        result: dict[str, Any] = document["result"]
        return None if self.goes_on else result

    def begin(self, asked: Mapping[str, Any]) -> dict[str, list[Sample]]:
        """The samples that are there, by prompt.

        Raises:
            RunError: they were asked for otherwise.
        """
        with explained(self.part):
            content = self.part.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a line may have been cut by a kill
        header, *lines = whole.split(b"\n")[:-1] or [b""]
        with explained(self.part):
            os.truncate(self.part, len(whole))
        if not header:
            self._append({"asked": asked})
            return {}
        self._refuse_other(json.loads(header)["asked"], asked)
        found = (json.loads(line) for line in lines)
        return {row["prompt"]: [Sample(*item) for item in row["samples"]] for row in found}

    def add(self, key: str, samples: Sequence[Sample]) -> None:
        """A prompt's samples, with the operating system before this returns."""
        self._append({"prompt": key, "samples": [[s.text, s.finish, s.logp] for s in samples]})

    def finish(self, groups: Sequence[Group], asked: Mapping[str, Any], answered: Answered) -> None:
        """Write the file, then the manifest."""
        self.goes_on = bool(answered.refusals)
        self.manifest.unlink(missing_ok=True)  # of the time before refused ones were asked
        write_groups(self.out, groups)
        result = {name: getattr(answered, name) for name in Answered.__dataclass_fields__}
        document = {
            "asked": asked,
            "result": result,
            "file": fingerprint_file(self.out),
            "versions": versions(),
        }
        write_text(self.manifest, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    def _append(self, document: Any) -> None:
        assert self._handle is not None
        with explained(self.part):
            # Half a surrogate pair, which a tokenizer can say, is no UTF-8: so all is ASCII.
            self._handle.write(json.dumps(document).encode() + b"\n")
            self._handle.flush()

    def _refuse_other(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        old, new = _flat(before), _flat(now)
        different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if different:
            raise RunError(
                "the samples there were asked for otherwise: "
                + "; ".join(
                    f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in different
                ),
                file=str(self.out),
                field="out",
                remedy="choose another --out, or --overwrite to begin anew",
            )

    def _in_the_way(self, message: str) -> RunError:
        return RunError(
            message,
            file=str(self.out),
            field="out",
            remedy="choose another --out, or --overwrite to replace it",
        )


def _flat(document: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested names with dots between them."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat
