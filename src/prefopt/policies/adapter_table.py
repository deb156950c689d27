"""The table of adapters: which of PEFT's are trained here, with what settings, and which are not.

A row is here because three things hold, and `tests/test_adapters.py` asks them of every row:
with the adapter switched off the policy is the model it started from, to the last bit, before
and after training; a fresh one changes nothing, so the first loss of DPO is log 2; and what is
saved comes back as the same policy. Soft prompts cannot change nothing: see `prompts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: settings of the recipe, by what PEFT calls them
_LORA = {"rank": "r", "alpha": "lora_alpha"}
_ALPHA = {"rank": "r", "alpha": "alpha"}
_RANK = {"rank": "r"}

_SMALL = {"rank": 16, "alpha": 32, "target_modules": "all-linear"}
_EVERYWHERE = {"target_modules": "all-linear"}

_BITS = ("nf4", "int8")
_ZERO: Mapping[str, tuple[Any, ...]] = {"init_weights": (True,)}

_CHANGES_BASE = "it changes the base, so that with the adapter off it is another model"
_OTHER_START = "it starts with another update than zero"
_NEEDS_DATA = "it reads data before training, which is not done here"
_PER_TOKEN = "it depends on where tokens stand in a row, and here many sequences share one"
_OTHER_TOOL = "it belongs to another way of training"


@dataclass(frozen=True)
class AdapterKind:
    """A row of the table.

    Attributes:
        config: name of PEFT's configuration class.
        trains: what is trained, in a few words.
        paper: where it is from.
        names: the recipe's settings that it reads → PEFT's names of them.
        defaults: of those settings.
        fixed: options of PEFT → the only values that are right; the first is the default.
        refused: options of PEFT → why they cannot be set.
        soft_prompt: it stands before the tokens; the others sit inside of layers.
        merges: whether `prefopt export` can fold it into the weights.
        quantized: kinds of quantized weights that it goes on top of.
        start: nats by which a fresh one may change a log-probability.
    """

    config: str
    trains: str
    paper: str
    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    soft_prompt: bool = False
    merges: bool = True
    quantized: tuple[str, ...] = ()
    start: float | None = 0.0

    @property
    def reads(self) -> frozenset[str]:
        """Settings of the recipe that have an effect on it."""
        own = {"init_text"} if self.start_from_text else set()
        return frozenset({*self.names, *own} | (set() if self.soft_prompt else {"target_modules"}))

    @property
    def start_from_text(self) -> bool:
        """Whether its virtual tokens begin as words."""
        return self.soft_prompt and self.config != "PromptEncoderConfig"


_LORA_REFUSED = {
    "trainable_token_indices": "embeddings of the base would be trained too",
    "layer_replication": _CHANGES_BASE,
    "loftq_config": _CHANGES_BASE,
    "eva_config": _NEEDS_DATA,
    "corda_config": _NEEDS_DATA,
    "lora_ga_config": _NEEDS_DATA,
    "kasa_config": _CHANGES_BASE,
    "velora_config": "it approximates gradients",
    "monteclora_config": "it draws its weights at random in training",
    "alora_invocation_tokens": _PER_TOKEN,
    "arrow_config": "it mixes several adapters",
    "use_qalora": "it needs GPTQ weights",
    "qalora_group_size": "it needs GPTQ weights",
    "use_bdlora": "it is for serving",
    "megatron_config": _OTHER_TOOL,
    "megatron_core": _OTHER_TOOL,
    "runtime_config": "where things are computed is decided elsewhere",
    "target_parameters": "an adapter on bare parameters cannot be switched off by layer",
    "ensure_weight_tying": "tied layers are left alone",
    "lora_bias": "its bias can be merged only into layers that have one",
}
_LORA_START = {"init_lora_weights": (True, "gaussian")}


def _lora(
    trains: str,
    paper: str,
    quantized: tuple[str, ...] = _BITS,
    **fixed: tuple[Any, ...],
) -> AdapterKind:
    return AdapterKind(
        "LoraConfig",
        trains,
        paper,
        names=_LORA,
        defaults=_SMALL,
        fixed={**_LORA_START, **fixed},
        refused=_LORA_REFUSED,
        quantized=quantized,
    )


def _inside(
    config: str,
    trains: str,
    paper: str,
    names: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    **more: Any,
) -> AdapterKind:
    """A row of an adapter inside of layers that starts at zero with `init_weights`."""
    settings = {**_EVERYWHERE, **(defaults or {})}
    return AdapterKind(
        config, trains, paper, names=names or {}, defaults=settings, **{"fixed": _ZERO, **more}
    )


_OF_THE_MODEL = dict.fromkeys(
    ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
    "it follows from the model",
)
_OF_THE_TEXT = dict.fromkeys(
    ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    "virtual tokens begin as words of the vocabulary, or as init_text says",
)
_PROMPT: Mapping[str, Any] = {
    "names": {"virtual_tokens": "num_virtual_tokens"},
    "defaults": {"virtual_tokens": 16},
    "soft_prompt": True,
    "merges": False,
    "quantized": _BITS,
    "start": None,
}

ADAPTERS: Mapping[str, AdapterKind] = {
    "lora": _lora("an update of low rank", "arXiv:2106.09685"),
    "dora": _lora("its direction, and a magnitude", "arXiv:2402.09353", ("nf4",), use_dora=(True,)),
    "rslora": _lora("the same, scaled by 1/√rank", "arXiv:2312.03732", use_rslora=(True,)),
    "ia3": AdapterKind(
        "IA3Config", "a factor a channel", "arXiv:2205.05638",
        fixed={"init_ia3_weights": (True,)}, quantized=_BITS,
    ),
    "ln_tuning": AdapterKind("LNTuningConfig", "a copy of the norms", "arXiv:2312.11420",
                             quantized=_BITS, start=1e-4),
    "oft": _inside("OFTConfig", "rotations, in blocks", "arXiv:2306.07280",
                   refused={"r": "give oft_block_size"}, quantized=_BITS),
    "boft": _inside("BOFTConfig", "rotations, in butterflies", "arXiv:2311.06243"),
    "hra": _inside("HRAConfig", "a chain of reflections", "arXiv:2405.17484", _RANK, {"rank": 8},
                   start=1e-4),
    "loha": _inside("LoHaConfig", "a Hadamard product of two updates of low rank",
                    "arXiv:2108.06098", _ALPHA, {"rank": 16, "alpha": 32}),
    "lokr": _inside("LoKrConfig", "a Kronecker product", "arXiv:2309.14859", _ALPHA,
                    {"rank": 16, "alpha": 32}),
    "vera": _inside("VeraConfig", "factors of shared random matrices", "arXiv:2310.11454",
                    _RANK, {"rank": 256}, quantized=_BITS),
    "randlora": _inside("RandLoraConfig", "factors of many random matrices", "arXiv:2502.00987",
                        {"rank": "r", "alpha": "randlora_alpha"}, {"rank": 32, "alpha": 640},
                        quantized=_BITS),
    "fourierft": _inside("FourierFTConfig", "some frequencies of the update", "arXiv:2405.03003"),
    "waveft": _inside("WaveFTConfig", "some wavelets of the update", "arXiv:2505.12532"),
    "shira": _inside("ShiraConfig", "some entries of the weights", "arXiv:2406.13175",
                     _RANK, {"rank": 32}),
    "supertuning": _inside(
        "SupertuningConfig", "the largest entries of the weights", "arXiv:2607.09287",
        refused=dict.fromkeys(("r", "lora_alpha"), "use lora for an update of low rank"),
    ),
    "c3a": _inside("C3AConfig", "circular convolutions, in blocks", "arXiv:2407.19342"),
    "delora": _inside("DeloraConfig", "a normalised update of low rank, and its length",
                      "arXiv:2503.18225", _RANK, {"rank": 16}),
    "glora": _inside("GloraConfig", "updates that scale and shift", "arXiv:2306.07967",
                     _RANK, {"rank": 8}),
    "gralora": _inside("GraloraConfig", "updates of low rank, block by block", "arXiv:2505.20355",
                       _ALPHA, {"rank": 32, "alpha": 64}),
    "hira": _inside("HiraConfig", "an update of low rank times the weights", "PEFT", _RANK,
                    {"rank": 32}, quantized=_BITS),
    "lily": _inside("LilyConfig", "updates of low rank whose parts are shared by layers",
                    "arXiv:2407.09946", _RANK, {"rank": 32}, merges=False),
    "miss": _inside("MissConfig", "shards of a row that is shared", "arXiv:2409.15371",
                    _RANK, {"rank": 64}),
    "peanut": _inside("PeanutConfig", "a small network of the weights", "arXiv:2410.01870",
                      _RANK, {"rank": 32}),
    "psoft": _inside("PsoftConfig", "a rotation of the principal subspace", "PEFT",
                     {"rank": "r", "alpha": "psoft_alpha"}, {"rank": 32, "alpha": 32}),
    "road": _inside("RoadConfig", "rotations and factors of pairs of channels",
                    "arXiv:2409.00119", quantized=_BITS),
    "tinylora": _inside("TinyLoraConfig", "a tiny vector behind random projections",
                        "arXiv:2602.04118", _RANK, {"rank": 2}),
    "prompt_tuning": AdapterKind(
        "PromptTuningConfig", "embeddings of virtual tokens", "arXiv:2104.08691",
        refused={**_OF_THE_MODEL, **_OF_THE_TEXT}, **_PROMPT,
    ),
    "p_tuning": AdapterKind(
        "PromptEncoderConfig", "the same, behind a small network", "arXiv:2103.10385",
        refused=_OF_THE_MODEL, **_PROMPT,
    ),
    "prefix_tuning": AdapterKind(
        "PrefixTuningConfig", "keys and values of virtual tokens, in every layer",
        "arXiv:2101.00190",
        refused={
            **_OF_THE_MODEL,
            "prefix_projection": "only what it projects to is saved, so a run that goes on "
            "from there would train something else",
            "encoder_hidden_size": "there is no projection",
            "init_weights": "virtual tokens begin as words of the vocabulary, or as init_text says",
        },
        **_PROMPT,
    ),
}  # fmt: skip

#: of any adapter, options that no row lets through
REFUSED_EVERYWHERE: Mapping[str, str] = {
    "bias": "biases of the base would be trained too, and stay with adapter off",
    "modules_to_save": "it trains copies of whole layers; adapt them instead",
    **dict.fromkeys(
        ("task_type", "inference_mode", "peft_type", "auto_mapping", "peft_version",
         "base_model_name_or_path", "revision"),
        "it is set here",
    ),
}  # fmt: skip

#: names of PEFT's that are not in the table, and why
NOT_HERE: Mapping[str, str] = {
    "pissa": f"{_CHANGES_BASE} (0.40 nats off)",
    "olora": f"{_CHANGES_BASE} (0.75 nats off)",
    "loftq": _CHANGES_BASE,
    "kasa": _CHANGES_BASE,
    "corda": f"{_CHANGES_BASE}, and {_NEEDS_DATA}",
    "eva": _NEEDS_DATA,
    "lora_ga": f"{_CHANGES_BASE}, and {_NEEDS_DATA}",
    "adalora": "it has to be told of every step, and adds a term of its own to the loss",
    "pvera": "it draws its weights at random in training",
    "vblora": f"{_OTHER_START} (0.026 nats off)",
    "unilora": f"{_OTHER_START} (0.0017 nats off)",
    "osf": "it rebuilds every weight from a decomposition, which rounds",
    "frod": "it rebuilds every weight from a decomposition, which rounds",
    "deft": "it rebuilds every weight from a projection, which rounds",
    "adamss": "it needs scikit-learn, and clusters every weight before training",
    "shadow": "it runs a second network beside the layers, whose states are in no cache",
    "adaption_prompt": "it replaces attention, which trees need for themselves",
    "cartridge": "it is made by distilling a long context; use prefix_tuning",
    "cpt": "its labels are part of its prompt; use prompt_tuning",
    "multitask_prompt_tuning": "it needs the number of a task for every row",
    "poly": "it needs the number of a task for every row",
    "xlora": "it mixes adapters that were trained before",
    "trainable_tokens": "it trains embeddings of tokens, which the reference would need a copy of",
    "beft": "it trains biases, which can be merged only into layers that have one",
    "bone": "PEFT calls it miss now",
}
