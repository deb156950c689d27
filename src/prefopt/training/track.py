"""Metrics to other places by name; `metrics.jsonl` is always written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from prefopt.errors import MissingExtraError

Log = Callable[[Mapping[str, Any]], None]


def check_tracker(name: str) -> None:
    """Find out before training that a tracker's library is there.

    Raises:
        MissingExtraError: it is not installed.
    """
    if name != "none":
        _needed(name)


@contextmanager
def tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    """Where a training's records also go, for as long as it lasts.

    Args:
        name: a key of `TRACKERS`.
        folder: of the run; its name is the run's name there.
        settings: the resolved recipe, shown beside the curves.
    """
    with TRACKERS[name](folder, settings) as log:
        yield log


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers under flat names.

    >>> scalars({"kind": "train", "step": 3, "loss": 0.5, "sources": {"hh": {"loss": 0.6}}})
    {'train/loss': 0.5, 'train/hh/loss': 0.6}
    """
    kind = record["kind"]
    flat = {
        f"{kind}/{name}": float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and name != "step"
    }
    for source, values in record.get("sources", {}).items():
        flat |= {f"{kind}/{source}/{name}": float(value) for name, value in values.items()}
    return flat


@contextmanager
def _none(folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    yield lambda record: None


@contextmanager
def _tensorboard(folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def log(record: Mapping[str, Any]) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record["step"])

    try:
        yield log
    finally:
        writer.close()


def _service(module: str) -> Callable[..., Any]:
    """Weights & Biases, and trackio, which has the same three calls."""

    @contextmanager
    def opened(folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
        library = _needed(module)
        library.init(project="prefopt", name=folder.name, config=dict(settings))
        try:
            yield lambda record: library.log(scalars(record), step=record["step"])
        finally:
            library.finish()

    return opened


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed",
            field="track",
            value=module,
            remedy="install it with: pip install 'prefopt[track]'",
        ) from error


TRACKERS: Mapping[str, Callable[..., Any]] = {
    "none": _none,
    "tensorboard": _tensorboard,
    "trackio": _service("trackio"),
    "wandb": _service("wandb"),
}
