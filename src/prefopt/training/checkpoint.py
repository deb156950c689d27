"""Checkpoints: whole or not there, and complete.

    checkpoints/step-000120/
      state/            trainable weights and optimizer, as torch.distributed.checkpoint writes
      checkpoint.json   position, evaluation state, random state, size of the metrics; last

The distributed format is used in one process too: it restores to the last bit, and other
numbers of processes can read it, under any strategy. A checkpoint is written under another
name and renamed; only then is the one before it removed. So there is always a good one.

Several processes each write their shards, while the training goes on with what was copied
from it. Once all shards are down, the main process alone gives the folder its name.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prefopt.errors import RunError
from prefopt.policies.adapters import has_adapter
from prefopt.policies.computing import shape_of
from prefopt.policies.load import Policy
from prefopt.policies.quantized import write_note
from prefopt.runs import atomic_folder, explained, write_text
from prefopt.training import distributed
from prefopt.training.loop import State
from prefopt.training.sharding import let_go

_MARKER = "checkpoint.json"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: made when the first is written.
        model: the policy; of an adapter, only the adapter is kept.
        optimizer: over the model's trainable parameters.
        reference: a model that changes while the policy is trained; None if it does not.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        reference: nn.Module | None = None,
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.reference = reference
        self._group: Any = None
        self._shards: Future[Any] | None = None
        self._placed: Future[None] | None = None
        if distributed.processes() > 1:  # one of its own: it is used beside the training's
            self._group = torch.distributed.new_group(backend="gloo")

    def save(self, state: State, **further: Any) -> Path:
        """Write a checkpoint and remove the ones before it.

        Of several processes all call it; it may still be written when this returns, and
        `finish` waits for it.

        Args:
            state: where the training is.
            further: whatever else must be the same again, as JSON.

        Raises:
            RunError: it cannot be written; the one before it is still there.
        """
        import torch.distributed.checkpoint as dcp

        self.finish()
        path = self.folder / f"step-{state.step:06d}"
        random_states = distributed.gather(_random_state())
        document = {"state": asdict(state), "random": random_states, **further}
        if self._group is not None:
            self._save_shards(path, document)
            return path
        with atomic_folder(path) as part, _explained(path, writing=True):
            dcp.save(self._tensors(), checkpoint_id=part / "state", no_dist=True)
            write_text(part / _MARKER, json.dumps(document))
        self._remove_but(path)
        return path

    def finish(self) -> None:
        """Wait until the last checkpoint is whole.

        Raises:
            RunError: it cannot be written; the one before it is still there.
        """
        if self._shards is None:
            return
        shards, self._shards = self._shards, None
        wait([shards])  # what is wrong with it, the main process is told as well

        def placed() -> None:
            assert self._placed is not None
            self._placed.result()

        distributed.by_main(placed)

    def _save_shards(self, path: Path, document: dict[str, Any]) -> None:
        import torch.distributed.checkpoint as dcp

        part = path.with_name(f".{path.name}.part")

        def room() -> None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

        distributed.by_main(room)
        # Staging makes no copy of what is on a CPU already, and the next step changes it.
        tensors = _copied(self._tensors())
        shards: Any = dcp.async_save(
            tensors, checkpoint_id=part / "state", process_group=self._group
        )
        self._shards = shards
        if distributed.main():
            threads = ThreadPoolExecutor(1, "checkpoint")
            self._placed = threads.submit(self._place, shards, part, path, document)
            threads.shutdown(wait=False)

    def _place(self, shards: Future[Any], part: Path, path: Path, document: dict[str, Any]) -> None:
        """Once all shards are down: the marker, the name, and away with the ones before."""
        try:
            with explained(path), _explained(path, writing=True):
                shards.result()
                write_text(part / _MARKER, json.dumps(document))
                shutil.rmtree(path, ignore_errors=True)
                part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._remove_but(path)

    def _remove_but(self, path: Path) -> None:
        for other in self._complete():
            if other != path:
                shutil.rmtree(other)

    def latest(self) -> Path | None:
        """The newest complete checkpoint; what a killed process left half-written is removed."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return max(self._complete(), key=lambda path: int(path.name[5:]), default=None)

    def load(self, path: Path) -> tuple[State, dict[str, Any]]:
        """Restore weights, optimizer and random state; returns the state and the further things.

        Raises:
            RunError: it cannot be read.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        with _explained(path):
            document = json.loads((path / _MARKER).read_text())
            tensors = self._tensors()
            alone = self._group is None
            dcp.load(
                tensors, checkpoint_id=path / "state", no_dist=alone, process_group=self._group
            )
            set_model_state_dict(
                self.model, tensors["model"], options=StateDictOptions(strict=False)
            )
            set_optimizer_state_dict(
                self.model, self.optimizer, tensors["optimizer"], options=_trainable_only()
            )
            if self.reference is not None:
                set_model_state_dict(self.reference, tensors["reference"])
        random_states = document.pop("random")
        if isinstance(random_states, dict):  # as one process wrote it
            random_states = [random_states]
        if len(random_states) == distributed.processes():
            _set_random_state(random_states[distributed.rank()])
        return State(**document.pop("state")), document

    def _tensors(self) -> dict[str, Any]:
        let_go(self.model)
        from torch.distributed.checkpoint.state_dict import (
            get_model_state_dict,
            get_optimizer_state_dict,
        )

        tensors = {
            "model": get_model_state_dict(self.model, options=_trainable_only()),
            "optimizer": get_optimizer_state_dict(
                self.model, self.optimizer, options=_trainable_only()
            ),
        }
        if self.reference is not None:
            let_go(self.reference)
            tensors["reference"] = get_model_state_dict(self.reference)
        return tensors

    def _complete(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*") if (path / _MARKER).exists()]


def _trainable_only() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(ignore_frozen_params=True)


def _copied(value: Any) -> Any:
    """Tensors of nested mappings that are on a CPU, in memory of their own."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return value.detach().clone()
    return value


def whole_weights(model: nn.Module) -> dict[str, Any] | None:
    """The weights of a sharded model, for the main process to save; None of any other model.

    All processes call it. Of a model with an adapter these are the adapter's.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if shape_of(model) is None:
        return None
    let_go(model)
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=has_adapter(model)
    )
    return get_model_state_dict(model, options=options)


def save_model(policy: Policy, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Write a policy as `load_policy` reads it: a model, or an adapter that names its base.

    Args:
        policy: what is written.
        folder: where.
        weights: those of a model that is sharded.
    """
    further: dict[str, Any] = {}
    if has_adapter(policy.model):
        # Not the frozen copy that may be beside it; and PEFT would ask a hub whether the
        # vocabulary has changed, which it never does here.
        further = {"selected_adapters": ["default"], "save_embedding_layers": False}
    if weights is not None:
        further["state_dict"] = weights
    policy.model.save_pretrained(folder, **further)
    write_note(policy.model, folder)
    if policy.tokenizer is not None:
        policy.tokenizer.save_pretrained(folder)


@contextmanager
def _explained(path: Path, *, writing: bool = False) -> Iterator[None]:
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            # One process without a process group is what is meant here.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:  # a BaseException, around one error per process
        inner = next((failure[0] for failure in error.failures.values()), error)
        if isinstance(inner, OSError) and not isinstance(inner, FileNotFoundError):
            raise inner from error  # of the disk, which the run folder knows how to explain
        if writing:  # torch's own writer has no better word for a disk that is full
            raise RunError(
                f"the checkpoint cannot be written, perhaps because the disk is full: {inner}",
                file=str(path),
                remedy="make room, and run the same command again",
            ) from error
        raise RunError(
            f"the checkpoint cannot be used: {inner}",
            file=str(path),
            remedy="set resume: never to start the run over",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"the checkpoint cannot be read: {error}",
            file=str(path),
            remedy="remove it, or set resume: never to start the run over",
        ) from error


def _random_state() -> dict[str, Any]:
    """Every generator that a model or a library might draw from, as plain JSON."""
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "numpy": numpy,
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(_bytes(state["torch"]))
    np.random.set_state(state["numpy"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
