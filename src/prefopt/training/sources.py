"""What goes into a training: its data as prepared, and the proof that it is still the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import prefopt
from prefopt.data.formats import GroupReader, read_groups
from prefopt.data.merging import PromptSeenTwice
from prefopt.engine.store import FORMAT, StoreWriter, TokenStore
from prefopt.engine.tokens import Column
from prefopt.errors import DataError, RunError
from prefopt.policies.fingerprint import fingerprint_tokenizer
from prefopt.recipe import Source
from prefopt.records import Group
from prefopt.runs import Run, fingerprint_file, versions
from prefopt.training import distributed
from prefopt.training.examples import Prepared, check_left, prepared
from prefopt.training.intake import Summary, encode_groups, longest, nothing_for
from prefopt.training.kept import kept_store
from prefopt.training.manifest import now
from prefopt.training.prepare import Learner
from prefopt.training.probing import columns_for

#: the parts of prefopt that decide what a row becomes
_CODE = (
    "records.py",
    "data/*.py",
    "engine/rendering.py",
    "engine/tokens.py",
    "engine/store.py",
    "training/intake.py",
    "training/reading.py",
)

#: size, time and number of a file
Stamp = tuple[int, int, int]


def load_sources(
    learner: Learner,
    sources: tuple[Source, ...],
    *,
    training: bool,
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[Prepared, list[dict[str, str | None]]]:
    """Read and prepare sources; returns the data and the files with their fingerprints.

    The groups are on disk, and are read and tokenised only if they were not before: under
    the same settings, from files with the same content. Costs and rewards that code outside
    the data computes cannot be recognised; with them everything is computed anew.

    Args:
        learner: who reads.
        sources: what it reads.
        training: plan shuffled epochs; otherwise one pass in order, as an evaluation does.
        advance: told how many further rows were read, now and then.

    Raises:
        DataError: as `prepare_data`; or a file changed while it was read.
        RunError: the cache folder cannot be used.
    """
    recipe, loss = learner.recipe, learner.loss
    readers = [
        read_groups(source.path, format=source.format, on_error=recipe.on_error, source=source.name)
        for source in sources
    ]
    columns = columns_for(learner) if training else {}
    paths = [path for reader in readers for path in reader.files]
    before = _stamps(paths)
    files = [{"path": path, "sha256": digest(path)} for path in paths]
    digests = [file["sha256"] for file in files]
    addressable = not learner.constraints and not columns and None not in digests
    key = _key(learner, sources, readers, digests) if addressable else None

    def write(writer: StoreWriter) -> Mapping[str, Any]:
        summary = _encoded(learner, readers, columns, writer, advance)
        check_left(summary, loss, training=training)
        _check_unchanged(paths, before)
        for reader in readers:
            summary.skipped.update(reader.skipped)
        return {**vars(summary), "nothing": nothing_for(loss)}

    def kept() -> TokenStore:
        return kept_store(key, paths, write)

    store = kept() if key is None else distributed.leaders_first(kept)
    shares = {str(source.name): source.share for source in sources if source.share is not None}
    data = prepared(
        store,
        _summary(store.notes, nothing_for(loss)),
        recipe,
        loss,
        training=training,
        shares=shares or None,
        costs=tuple(constraint.column for constraint in learner.constraints),
    )
    return data, files


def _encoded(
    learner: Learner,
    readers: Sequence[GroupReader],
    columns: Mapping[str, Column],
    writer: StoreWriter,
    advance: Callable[[int], None],
) -> Summary:
    """Write what the readers have, in one pass over the files if no prompt comes twice."""

    def encode(groups: Iterable[Group]) -> Summary:
        return encode_groups(
            learner.policy,
            learner.recipe,
            learner.loss,
            _counted(groups, advance),
            writer,
            constraints=learner.constraints,
            columns=columns,
        )

    try:
        return encode(chain.from_iterable(map(GroupReader.at_once, readers)))
    except PromptSeenTwice:  # then what its rows say belongs together
        writer.clear()
        return encode(chain.from_iterable(readers))


def _key(
    learner: Learner,
    sources: Sequence[Source],
    readers: Sequence[GroupReader],
    digests: Sequence[str | None],
) -> str:
    """Digest of everything that decides which groups there are and what is in them."""
    recipe, loss, policy = learner.recipe, learner.loss, learner.policy
    found = versions()
    parts = {
        "format": FORMAT,
        "code": _code(),
        "versions": [found.get(name) for name in ("python", "prefopt", "transformers",
                                                  "tokenizers")],
        "sources": [
            [source.name, source.format, [os.path.basename(path) for path in reader.files]]
            for source, reader in zip(sources, readers, strict=True)
        ],
        "files": digests,
        "tokenizer": [type(policy.tokenizer).__name__, fingerprint_tokenizer(policy.tokenizer)],
        "end_of_turn": sorted(policy.end_of_turn),
        "max_length": longest(recipe, policy),
        "too_long": recipe.too_long,
        "on_error": recipe.on_error,
        "objective": [loss.reads, loss.soft, loss.weighted, loss.needs_rewards],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    """Digest of the code that reads rows: what another version made is not taken for ours."""
    folder = Path(prefopt.__file__).parent
    found = hashlib.sha256()
    for path in sorted(chain.from_iterable(map(folder.glob, _CODE))):
        found.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _summary(notes: Mapping[str, Any], nothing: str) -> Summary:
    """What was noted with a store, in the words of this training's objective."""
    values = dict(notes)
    name = values.pop("nothing")
    skipped = {nothing if why == name else why: count for why, count in notes["skipped"].items()}
    return Summary(**{**values, "skipped": Counter(skipped), "cut": Counter(notes["cut"])})


def _counted(groups: Iterable[Group], advance: Callable[[int], None]) -> Iterator[Group]:
    """The groups; the rows that they come from are told in hundreds."""
    rows = 0
    for group in groups:
        rows += len(group.origins)
        if rows >= 100:
            advance(rows)
            rows = 0
        yield group
    advance(rows)


def _check_unchanged(paths: Sequence[str], before: Sequence[Stamp]) -> None:
    if _stamps(paths) != before:
        raise DataError(
            "the files changed while they were read",
            kind="unreadable_file",
            file=paths[0],
            remedy="start again once nothing writes to them",
        )


def _stamps(paths: Iterable[str]) -> list[Stamp]:
    found = (os.stat(path) for path in paths if os.path.exists(path))
    return [(status.st_size, status.st_mtime_ns, status.st_ino) for status in found]


def digest(path: str) -> str | None:
    """Fingerprint of a file; None of a data set that is not a file here."""
    return fingerprint_file(path) if Path(path).exists() else None


def check_identity(run: Run, learner: Learner, data: Prepared, evaluation: Prepared | None) -> str:
    """Note what the run starts from, or check that it still does; returns when it started.

    Raises:
        RunError: the policy, the reference or the data is not what the run started with.
    """
    path = run.checkpoints / "identity.json"
    identity = {
        "policy": learner.fingerprint,
        "tokenizer": fingerprint_tokenizer(learner.policy.tokenizer),
        "reference": learner.reference.fingerprint if learner.reference else None,
        "data": data.fingerprint,
        "eval_data": evaluation.fingerprint if evaluation else None,
    }
    if not path.exists():
        run.checkpoints.mkdir(exist_ok=True)
        run.write_json(path, {**identity, "started": now()})
    known = run.read_json(path)
    for name, fingerprint in identity.items():
        if known[name] != fingerprint:
            raise RunError(
                f"the folder holds a run that began with another {name.replace('_', ' ')}: "
                "its content has changed since",
                file=str(run.folder),
                field=name if name != "policy" else "model",
                remedy="restore it, choose another --out, or set resume: never to start over",
            )
    return str(known["started"])
