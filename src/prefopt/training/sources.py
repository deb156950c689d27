"""What goes into a training: its data as prepared, and the proof that it is still the same."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

from prefopt.data.formats import read_groups
from prefopt.errors import RunError
from prefopt.policies.fingerprint import fingerprint_tokenizer
from prefopt.recipe import Source
from prefopt.runs import Run, fingerprint_file
from prefopt.training.examples import Prepared, prepare_data
from prefopt.training.manifest import now
from prefopt.training.prepare import Learner
from prefopt.training.probing import columns_for


def load_sources(
    learner: Learner, sources: tuple[Source, ...], *, training: bool
) -> tuple[Prepared, list[dict[str, str | None]]]:
    """Read and prepare sources; returns the data and the files with their fingerprints."""
    recipe = learner.recipe
    readers = [
        read_groups(source.path, format=source.format, on_error=recipe.on_error, source=source.name)
        for source in sources
    ]
    shares = {str(source.name): source.share for source in sources if source.share is not None}
    prepared = prepare_data(
        learner.policy,
        recipe,
        learner.loss,
        chain.from_iterable(readers),
        training=training,
        shares=shares or None,
        constraints=learner.constraints,
        columns=columns_for(learner) if training else None,
    )
    skipped = Counter(prepared.counts["skipped"])
    for reader in readers:
        skipped.update(reader.skipped)
    prepared.counts["skipped"] = dict(skipped)
    paths = [path for reader in readers for path in reader.files]
    return prepared, [{"path": str(path), "sha256": digest(path)} for path in paths]


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
