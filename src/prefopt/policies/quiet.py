"""What libraries warn of while they do the right thing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: an adapter beside a tied layer leaves the tie alone; GPT-2's transposed layers are recognised;
#: an old name still works; norms of every kind are copied, whatever their class; BOFT computes
#: without its own kernel
_HARMLESS = (
    ".*tie_word_embeddings",
    "fan_in_fan_out is set to",
    "`is_gradient_checkpointing`",
    "Unsupported layer type",
    "Failed to load the CUDA extension",
    "Setting boft_n_butterfly_factor to 1",
)


#: who reports what a folder lacks; and, once that is to be silent, which layers have no plan for
#: tensor parallelism, which nobody asked for
_REPORTERS = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")


@contextmanager
def without_report() -> Iterator[None]:
    """Without the report of weights that a folder lacks: a head that is drawn is meant to be."""
    loggers = [logging.getLogger(name) for name in _REPORTERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def quietly() -> Iterator[None]:
    """Without those warnings, for the length of a `with` block."""
    with warnings.catch_warnings():
        for harmless in _HARMLESS:
            warnings.filterwarnings("ignore", message=harmless)
        yield
