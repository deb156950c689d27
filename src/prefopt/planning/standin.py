"""A model that has shapes and no numbers: what a training will be made of, before it is loaded.

Its parameters are fake tensors: operations on them give tensors of the right shape, type and
device and compute nothing. Everything else (tokens, positions, masks) is real, so the engine's
own forward and backward go through it unchanged, whatever they decide from their inputs.
"""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prefopt.constraints import Constraint
from prefopt.engine.logps import Precision, Scorer
from prefopt.errors import PrefoptError
from prefopt.objectives.loss import Weighted
from prefopt.objectives.objective import Head
from prefopt.policies.export import model_folder
from prefopt.policies.load import (
    Policy,
    load_tokenizer,
    refuse_no_model,
    refuse_reward_model,
    unusable,
)
from prefopt.policies.reference import freeze
from prefopt.policies.reward import read_config, refuse_other_adapter, settle_head
from prefopt.recipe import Recipe
from prefopt.training.examples import Prepared
from prefopt.training.loop import Job
from prefopt.training.prepare import Learner, make_job, make_learner


@functools.cache
def fakes() -> FakeTensorMode:
    """The mode that all fake tensors here belong to; they are allowed to meet real ones."""
    return FakeTensorMode(allow_non_fake_inputs=True)


#: head → what makes such a model, and what it is called
_LOADERS: dict[Head, str] = {
    "words": "AutoModelForCausalLM",
    "reward": "AutoModelForSequenceClassification",
}
_KINDS: dict[Head, str] = {"words": "causal language model", "reward": "reward model"}


@dataclass(frozen=True)
class Outline:
    """What is known of a model without its weights.

    Attributes:
        config: of the model, as its folder or the hub has it.
        tokenizer: its own.
        name: folder or hub id.
        generation: its generation config, where it has one.
        adapter: PEFT's config, if the folder holds an adapter; the rest is of its base.
        head: for words, or for rewards.
    """

    config: Any
    tokenizer: Any
    name: str
    generation: Any = None
    adapter: Any = None
    head: Head = "words"

    @property
    def layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def period(self) -> int:
        """Layers after which their kinds repeat: 1, or such as 6 of sliding and full windows."""
        kinds = list(getattr(self.config.get_text_config(), "layer_types", None) or ())
        fitting = (n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n])
        return next(fitting, len(kinds) or 1)

    def policy(self, depth: int | None = None) -> Policy:
        """The policy that loading it would return, with fake parameters.

        Args:
            depth: layers; by default all.

        Raises:
            PolicyError: `transformers` has no causal language model of this kind, or no
                reward model.
        """
        import transformers

        loader: Any = getattr(transformers, _LOADERS[self.head])
        config = copy.deepcopy(self.config)
        if depth is not None and depth != self.layers:
            _shorten(config.get_text_config(), depth)
        try:
            with torch.device("meta"):
                model = loader.from_config(config, dtype=torch.float32)
        except Exception as error:  # a config that no model can be made of
            raise unusable(self.name, error, kind=_KINDS[self.head]) from error
        model.config._name_or_path = self.name
        give_shapes(model)
        if self.head == "reward":
            settle_head(self.name, model, self.tokenizer)
        elif self.generation is not None:
            model.generation_config = self.generation
        if self.adapter is not None:
            from peft import get_peft_model

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(model, self.adapter)
            give_shapes(model)
        return Policy(model, self.tokenizer, self.name)


def find_outline(name: str, head: Head = "words") -> Outline:
    """Read what is known of a model: a folder, a run's folder, or a hub id.

    Args:
        name: which.
        head: what it is trained with.

    Raises:
        PolicyError: there is no such model, it is of another kind, or its tokenizer is missing.
    """
    source = model_folder(name)
    refuse_no_model(source)
    if head == "words":
        refuse_reward_model(source)
    try:
        return _read(source, head)
    except PrefoptError:
        raise
    except Exception as error:  # as in `load_policy`
        raise unusable(source, error, kind=_KINDS[head]) from error


def _read(source: str, head: Head) -> Outline:
    from transformers import AutoConfig, GenerationConfig

    adapter = None
    base = source
    if (Path(source) / "adapter_config.json").exists():
        from peft import PeftConfig

        adapter = PeftConfig.from_pretrained(source)
        base = str(adapter.base_model_name_or_path)
        if head == "reward":
            refuse_other_adapter(source, adapter)
    config = AutoConfig.from_pretrained(base) if head == "words" else read_config(base)[0]
    try:
        generation = GenerationConfig.from_pretrained(base)
    except OSError:  # it has none: what the model's config says holds
        generation = None
    return Outline(config, load_tokenizer(source), source, generation, adapter, head)


def give_shapes(model: nn.Module) -> None:
    """Replace parameters by fake ones on the CPU, and buffers without numbers by zeros."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None or getattr(weight, "fake_mode", None) is fakes():
                continue  # a copy of a fake tensor is of another mode, and is replaced too
            if id(weight) not in made:
                with fakes():
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                made[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
            module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def stand_in(
    policy: Policy,
    recipe: Recipe,
    loss: Weighted,
    *,
    reference: Policy | None = None,
    constraints: tuple[Constraint, ...] = (),
    bf16: bool = False,
) -> Learner:
    """The learner that training would make, around a policy with fake parameters.

    Args:
        policy: of an `Outline`; changed in place.
        recipe: what is trained and how.
        loss: what it minimises.
        reference: the other model, where the recipe names one.
        constraints: what else it must keep.
        bf16: compute in bf16, as an accelerator would.

    Raises:
        RecipeError, PolicyError: what training would raise.
    """
    here = {"device": "cpu", "precision": "auto", "offload_activations": False, "compile": False}
    plain = recipe.model_copy(update={**here, "parallel": type(recipe.parallel)()})
    if reference is not None:
        freeze(reference)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        learner = make_learner(policy, plain, loss, reference=reference, constraints=constraints)
    give_shapes(learner.policy.model)  # to an adapter, which was made with numbers
    _decide(learner, "bf16" if bf16 or recipe.weights == "bf16" else "fp32")
    return learner


def job_of(learner: Learner, data: Prepared) -> Job:
    """The loop's job around a policy of shapes, with a frozen copy where one is needed."""
    with warnings.catch_warnings():  # PyTorch asks where a tensor is in memory to copy it
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        job = make_job(learner, data)
    _decide(learner, learner.scorer.precision)
    return job


def _decide(learner: Learner, precision: Precision) -> None:
    """What scorers find out from numbers: nearly all models agree on trees and separate rows."""
    for scorer in _scorers(learner):
        scorer.precision = precision
        scorer.sharing = "rows" if learner.recipe.sharing == "off" else "trees"
        scorer._head_known = True


def _scorers(learner: Learner) -> list[Scorer]:
    found = [learner.scorer]
    if learner.reference is not None and learner.reference.score is not None:
        found.append(learner.reference.score.scorer)
    return found


def _shorten(config: Any, depth: int) -> None:
    """The same model with fewer layers of the same kinds, in the same order."""
    before = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == before:  # one for each layer
            setattr(config, name, value[:depth])
    config.num_hidden_layers = depth
