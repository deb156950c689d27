"""Data in two parts, to train on and to evaluate with, that have no prompt in common.

By cluster, which is the default, whole clusters of prompts go to one side, so that the evaluation
asks about things that training has not seen:

1. Every prompt is in a cluster: TF-IDF and k-means on at most 20,000 different prompts; all
   others are in the nearest cluster.
2. A cluster with more than a quarter of the prompts that evaluation should get is divided again,
   by k-means on its own prompts. Otherwise a large topic could be on no side but that of training.
3. Prompts of the 20,000 that say nearly the same (`checking/similarity.py`) stay together, also
   where they are in different clusters.
4. Clusters are put in a random order, by the seed. The first ones are for evaluation: as many as
   come closest to the share.

By prompt, the prompts with the smallest seeded digests are for evaluation. Neither depends on the
order of the rows.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.data.files import Paths
from prefopt.data.formats import GroupReader, OnError, as_line
from prefopt.data.parts import Parts, first_of_alike
from prefopt.errors import RecipeError
from prefopt.records import Group
from prefopt.runs import atomic_folder, empty_folder, fingerprint_file, versions, write_text

By = Literal["cluster", "prompt"]
Digests = NDArray[np.uint64]
Progress = Callable[..., None]
Sides = dict[str, dict[str, int]]

MANIFEST = "split.json"

_LARGEST = 0.25  # of the share for evaluation, that one part has at most
_AT_ONCE = 2048  # prompts looked up together


def split(
    paths: Paths,
    out: str | Path,
    *,
    share: float = 0.1,
    by: By = "cluster",
    clusters: int | None = None,
    seed: int = 0,
    format: str = "auto",
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `train.jsonl`, `eval.jsonl` and `split.json` into a new folder.

    The files are read three times (by cluster four times) and once more for their fingerprints.
    Memory grows by some 30 bytes a prompt and by what clusters are made of, not by the texts.

    Args:
        paths: what `read_groups` takes.
        out: the folder; it must not exist, or be empty.
        share: of the different prompts, for evaluation; above 0 and below 1.
        by: `cluster` or `prompt`.
        clusters: how many clusters there are before large ones are divided; by default √(N/2) of
            N prompts, at most 100.
        seed: another one, another split.
        format, on_error: as for `read_groups`.
        progress: called with the rows read so far of all passes together.

    Returns:
        `train` and `eval`: `path`, `groups`, `comparisons`, `prompts`; `share` of the prompts that
        evaluation got; `by`, `seed`, `clusters` and `eval_clusters` (None by prompt),
        `kept_together`: prompts that say nearly what another one says, `skipped`, `manifest`.

    Raises:
        DataError: as for `read_groups`.
        RecipeError: there is nothing to divide, or a setting is out of range or without effect.
        RunError: the folder holds something, or cannot be written.
    """
    _check(share, by, clusters)
    target = empty_folder(out, "a split")
    reader = GroupReader(paths, format=format, on_error=on_error)
    passes = _Passes(reader, progress)
    if by == "prompt":
        chosen = _by_prompt(passes, share, seed)
    else:
        chosen = _by_cluster(passes, share, clusters, seed)
    with atomic_folder(target) as part:
        sides = _write(part, reader, chosen, passes)
        made = {
            "by": by,
            "seed": seed,
            "share": len(chosen.evaluation) / len(chosen.prompts),
            "clusters": chosen.clusters,
            "eval_clusters": chosen.eval_clusters,
            "kept_together": chosen.kept_together,
            "skipped": dict(reader.skipped),
        }
        write_text(part / MANIFEST, _manifest(made, sides, share, reader.files))
    named = {name: {"path": str(target / f"{name}.jsonl"), **side} for name, side in sides.items()}
    return {**named, **made, "manifest": str(target / MANIFEST)}


def _check(share: float, by: str, clusters: int | None) -> None:
    if not 0 < share < 1:
        raise RecipeError(
            "evaluation needs some of the prompts, and training the others",
            field="share",
            value=share,
            remedy="choose a share above 0 and below 1, such as 0.1",
        )
    if clusters is not None and by == "prompt":
        raise RecipeError(
            "no clusters are made when data is divided by prompt",
            field="clusters",
            value=clusters,
            remedy="leave it out, or divide by cluster",
        )
    if clusters is not None and clusters < 2:
        raise RecipeError(
            "one cluster cannot be divided", field="clusters", value=clusters, remedy="two or more"
        )


@dataclass(frozen=True)
class _Chosen:
    """What goes where.

    Attributes:
        prompts: (P,) digests of all prompts, ascending.
        evaluation: those for evaluation, ascending.
    """

    prompts: Digests
    evaluation: Digests
    clusters: int | None = None
    eval_clusters: int | None = None
    kept_together: int | None = None


class _Passes:
    """Readings of the rows, which report how far they are."""

    def __init__(self, reader: GroupReader, progress: Progress | None) -> None:
        self._reader = reader
        self._progress = progress
        self._before = 0

    def __iter__(self) -> Iterator[Group]:
        """The group of every row, before those with one prompt are merged."""
        for count, (group, _) in enumerate(self._reader.row_groups()):
            self.report(count)
            yield group
        self._before += self._reader.rows

    def report(self, count: int) -> None:
        """Say how far this reading is."""
        if self._progress is not None and count % _AT_ONCE == 0:
            self._progress(self._before + count)


def _digest(group: Group) -> int:
    return int.from_bytes(group.prompt_key[:8], "little")


# -- by prompt -----------------------------------------------------------------------------


def _by_prompt(passes: _Passes, share: float, seed: int) -> _Chosen:
    from prefopt.data.checking.similarity import mixed

    prompts = _different(array("Q", (_digest(group) for group in passes)))
    salt = np.full(1, seed % (1 << 64), dtype=np.uint64)
    drawn = np.argsort(mixed(prompts ^ mixed(salt)), kind="stable")
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    return _Chosen(prompts, np.sort(prompts[drawn[:count]]))


def _different(digests: array[int]) -> Digests:
    prompts = np.unique(np.frombuffer(digests, dtype=np.uint64))
    if len(prompts) < 2:
        raise RecipeError(
            "all rows have one prompt, so there is nothing to divide"
            if len(prompts)
            else "no row could be read",
            field="data",
            remedy="give rows with several prompts",
        )
    return prompts


# -- by cluster ----------------------------------------------------------------------------


def _by_cluster(passes: _Passes, share: float, clusters: int | None, seed: int) -> _Chosen:
    from prefopt.data.checking.clusters import FITTED, drawn, usual_count

    digests = array("Q")

    def texts() -> Iterator[str]:
        for group in passes:
            digests.append(_digest(group))
            yield group.prompt_text

    sample = drawn(texts(), FITTED, seed=seed)
    prompts = _different(digests)
    alike = first_of_alike(sample, seed)
    parts = Parts(
        sample,
        largest=max(1.0, _LARGEST * share * len(sample)),
        count=clusters or usual_count(len(sample)),
        seed=seed,
    )
    part = _assigned(passes, prompts, parts, alike)
    present, number = np.unique(part, return_inverse=True)
    if len(present) < 2:
        raise RecipeError(
            "all prompts are in one cluster, because they say nearly the same",
            field="by",
            value="cluster",
            remedy="divide by prompt, or give data about more than one thing",
        )
    chosen = _drawn_parts(np.bincount(number), share, seed)
    return _Chosen(
        prompts,
        prompts[chosen[number]],
        clusters=len(present),
        eval_clusters=int(chosen.sum()),
        kept_together=len(alike),
    )


def _assigned(
    passes: _Passes, prompts: Digests, parts: Parts, alike: Mapping[str, str]
) -> NDArray[np.int64]:
    """(P,) the part of each of the prompts."""
    part = np.full(len(prompts), -1, dtype=np.int64)
    waiting: dict[int, str] = {}

    def assign() -> None:
        if waiting:
            found = parts.of([alike.get(text, text) for text in waiting.values()])
            part[np.fromiter(waiting, np.int64, len(waiting))] = found
            waiting.clear()

    for group in passes:
        place = _place(prompts, _digest(group))
        if part[place] < 0:
            waiting[place] = group.prompt_text
        if len(waiting) >= _AT_ONCE:
            assign()
    assign()
    return part


def _place(digests: Digests, digest: int) -> int:
    """Where a digest stands among ascending ones, or would."""
    return int(np.searchsorted(digests, np.uint64(digest)))


def _drawn_parts(sizes: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """(U,) which parts are for evaluation: in random order, as many as come closest to the share.

    A part that is larger than all that evaluation should get stays with training.

    >>> _drawn_parts(np.array([90, 5, 5]), 0.1, seed=0).tolist()
    [False, True, True]
    """
    target = share * sizes.sum()
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[sizes[order] <= max(target, sizes.min())]
    reached = np.cumsum(sizes[order])
    count = int(np.abs(reached - target).argmin()) + 1
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[: min(count, len(sizes) - 1)]] = True
    return chosen


# -- writing -------------------------------------------------------------------------------


def _write(folder: Path, reader: GroupReader, chosen: _Chosen, passes: _Passes) -> Sides:
    sides: Sides = {
        name: {"groups": 0, "comparisons": 0, "prompts": count}
        for name, count in (
            ("train", len(chosen.prompts) - len(chosen.evaluation)),
            ("eval", len(chosen.evaluation)),
        )
    }
    with open(folder / "train.jsonl", "wb") as train, open(folder / "eval.jsonl", "wb") as test:
        files: dict[str, IO[bytes]] = {"train": train, "eval": test}
        for count, group in enumerate(reader):
            digest = _digest(group)
            place = _place(chosen.evaluation, digest)
            held = place < len(chosen.evaluation) and int(chosen.evaluation[place]) == digest
            name = "eval" if held else "train"
            files[name].write(as_line(group))
            sides[name]["groups"] += 1
            sides[name]["comparisons"] += len(group.comparisons)
            passes.report(count)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return sides


def _source(file: str) -> dict[str, str | None]:
    """A file by name and fingerprint; a data set of the hub has no fingerprint here."""
    return {"file": file, "fingerprint": fingerprint_file(file) if os.path.exists(file) else None}


def _manifest(made: dict[str, Any], sides: Sides, share: float, files: list[str]) -> str:
    """What `split.json` says, beside what is returned: of what, with what, and what was asked."""
    document = {
        **{name: {"path": f"{name}.jsonl", **side} for name, side in sides.items()},
        **made,
        "asked_share": share,
        "sources": [_source(file) for file in files],
        "versions": versions(),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
