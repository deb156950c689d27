"""A policy: a causal language model with the tokenizer it speaks through."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from prefopt.errors import PolicyError, PrefoptError
from prefopt.policies import quantized
from prefopt.policies.quiet import quietly

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


#: what the config of a reward model says that is trained here: where its reward is read
READS, END_OF_TURN = "prefopt_reads", "end_of_turn"


@dataclass
class Policy:
    """A model and its tokenizer, ready to be scored or trained.

    Attributes:
        model: a `transformers` causal model, or a PEFT model around one; fp32 weights and
            every dropout at zero, so that a score is a number and not a sample.
        tokenizer: its tokenizer.
        name: the folder or hub id it was loaded from, or a name for one made in memory.
    """

    model: PreTrainedModel | Any
    tokenizer: PreTrainedTokenizerBase
    name: str = "(in memory)"

    def __post_init__(self) -> None:
        disable_dropout(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def max_length(self) -> int | None:
        """Tokens the model was made for, where its config says so; virtual ones take theirs."""
        limit = length_limit(self.model.config)
        adapters = getattr(self.model, "peft_config", {}).values()
        virtual = max((getattr(c, "num_virtual_tokens", None) or 0 for c in adapters), default=0)
        return None if limit is None else limit - virtual

    @property
    def end_of_turn(self) -> frozenset[int]:
        """Ids that end an answer, as the generation config and the tokenizer declare them."""
        source = getattr(self.model, "generation_config", None) or self.model.config
        declared = getattr(source, "eos_token_id", None)
        ids = declared if isinstance(declared, list) else [declared]
        return frozenset(i for i in (*ids, self.tokenizer.eos_token_id) if i is not None)


def load_policy(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    quantize: Literal["nf4", "int8"] | None = None,
) -> Policy:
    """Load a folder or hub id: a whole model, or an adapter with the base it names.

    Args:
        name: a folder that `save_pretrained` wrote, or a hub id.
        device: defaults to the first accelerator, else the CPU.
        quantize: keep the weights in 4 or 8 bits. What an adapter was trained on is what it is
            loaded on in any case.

    Raises:
        PolicyError: there is no such model, it is not a causal language model, some of its
            weights or its tokenizer are missing; or there is no such device.
        MissingExtraError: quantized weights, and bitsandbytes is not installed.
    """
    source = str(name)
    refuse_no_model(source)
    refuse_reward_model(source)
    target = usable_device(device)
    how = quantized.wanted(source, quantize)
    options = quantized.loading_options(how, target) if how else {}
    try:
        model, tokenizer = _load(source, options)
    except PrefoptError:
        raise
    except Exception as error:  # what a broken file makes of a library has no common type
        raise unusable(source, error) from error
    quantized.one_arithmetic(model)
    return Policy(model if options else model.to(target), tokenizer, source)


def _load(source: str, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    with quietly():
        if (Path(source) / "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            loader = AutoPeftModelForCausalLM
            model = loader.from_pretrained(source, dtype=torch.float32, **options)
        else:
            model, found = loader.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, **options
            )
            _refuse_drawn(source, found["missing_keys"])
    return model, load_tokenizer(source)


def _refuse_drawn(source: str, missing: Collection[str]) -> None:
    """Weights that no file has would be random numbers, and nobody would see it in a score."""
    if missing:
        names = sorted(missing)
        raise PolicyError(
            f"{source} lacks {len(names)} of the model's weights, such as {names[0]}",
            field="model",
            value=source,
            remedy="download or save it again, whole; a model without a head for words, as "
            "classifiers and reward models are, cannot be a policy",
        )


def is_reward_model(source: str | Path) -> bool:
    """Whether a folder holds a sequence classifier, or an adapter of one; nothing is loaded.

    Of a hub id nothing is asked: False.
    """
    adapter = _json(Path(source) / "adapter_config.json")
    if adapter is not None:
        return adapter.get("task_type") == "SEQ_CLS"
    kinds = (_json(Path(source) / "config.json") or {}).get("architectures") or ()
    return any(str(kind).endswith("ForSequenceClassification") for kind in kinds)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def refuse_reward_model(source: str) -> None:
    """Loaded as a policy it would speak with a head that nobody trained."""
    if is_reward_model(source):
        raise PolicyError(
            f"{source} is a reward model: it gives completions a number and cannot speak",
            field="model",
            value=source,
            remedy="give a policy; a reward model judges, as `--judge reward:FOLDER`",
        )


def unusable(source: str, error: Exception, *, kind: str = "causal language model") -> PolicyError:
    """What a library says about a model that it cannot load, in our form."""
    return PolicyError(
        f"cannot load a {kind} from '{source}': {_first_line(error)}",
        field="model",
        value=source,
        remedy="give an existing folder or a hub id; a folder needs the model's and the "
        "tokenizer's files",
    )


def length_limit(config: Any) -> int | None:
    """Tokens that a model of this config was made for, where it says so."""
    text = config.get_text_config()
    value = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(value) if value else None


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a model folder or hub id."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def refuse_no_model(source: str) -> None:
    """Say at once what asking a hub would say after a minute, or not so well."""
    path = Path(source).expanduser()
    files = ("config.json", "adapter_config.json")
    if path.is_dir():
        if not any((path / file).exists() for file in files):
            raise PolicyError(
                f"{source} is a folder without a model",
                field="model",
                value=source,
                remedy="give a folder that has config.json (or adapter_config.json), "
                "as save_pretrained writes it; a run's model is in its model/ folder",
            )
    elif path.exists() or path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise PolicyError(
            f"{source} is {'a file' if path.exists() else 'not there'}; a model is a folder",
            field="model",
            value=source,
            remedy="give an existing folder that save_pretrained wrote, or a hub id",
        )


def base_model(model: Any) -> Any:
    """The `transformers` model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def default_device() -> torch.device:
    """The first accelerator of this machine, else its CPU."""
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device by name, once something was put on it; by default the first accelerator.

    Raises:
        PolicyError: there is no such device.
    """
    if device is None:
        return default_device()
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter without the build for it
        raise PolicyError(
            f"the device cannot be used: {_first_line(error)}",
            field="device",
            value=str(device),
            remedy="leave it out for the first accelerator, or set it to cpu",
        ) from error


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to zero, attention's included.

    Dropout makes log-ratios noisy, and in a reference it makes them wrong: with it on, one
    and the same model differed from itself by 0.65 nats.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
