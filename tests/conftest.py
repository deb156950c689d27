"""What every test may lean on: a tokenizer trained on the spot, tiny seeded models, data.

Nothing here imports torch or transformers before a fixture needs them, so the tests of the
torch-free rooms stay torch-free. No test touches a network: models come from configs with
seeded random weights, the tokenizer is trained here, and both go through `save_pretrained`
and `from_pretrained`, so that the loading code is the real one.
"""

from __future__ import annotations

import os

# One thread a process: the suite runs several processes, and tiny matrices gain nothing from
# threads. Set before torch is imported anywhere; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import chromium, open_context, room  # noqa: F401, used by name
from tests.clock import clock  # noqa: F401, used by name
from tests.postgres import database_url, fresh_postgresql, postgresql  # noqa: F401, used by name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from prefopt.policies.load import Policy

ROOT = Path(__file__).resolve().parent.parent

# -- isolation -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def prefopt_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a reference-score cache of its own, never the user's."""
    folder = tmp_path / "prefopt-cache"
    monkeypatch.setenv("PREFOPT_CACHE", str(folder))
    return folder


# -- real data, where it is present --------------------------------------------------------


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real preference data; the test is skipped where there is none.

    `PREFOPT_DATA` names it; otherwise a `shared/data` folder beside the checkout or beside
    one of its parents is used.
    """
    named = os.environ.get("PREFOPT_DATA")
    if named:
        return Path(named)
    for folder in (ROOT, *ROOT.parents):
        if (folder / "shared" / "data").is_dir():
            return folder / "shared" / "data"
    pytest.skip("no real data here; set PREFOPT_DATA to a folder that has hh_harmless/")


# -- a tokenizer ---------------------------------------------------------------------------

_CORPUS = (
    "The film was a quiet delight and the cast was splendid.",
    "What a dull, clumsy story; I wanted to leave after ten minutes.",
    "How do I bake bread? Mix flour, water, salt and yeast, then wait.",
    "Name a colour. Blue is the colour of the sky on a clear day.",
    "Please tell me about the weather in Oslo in 1999 and 2024.",
    "user system assistant tool",
    "I cannot help with that, but here is something that I can do for you.",
)

# Turns end with EOS; a newline follows it, as in many real templates, so that tests notice
# when an answer is scored beyond its end of turn.
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with BOS, EOS, a pad and a chat template, saved as a user's would be."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|turn|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        additional_special_tokens=["<|turn|>"],
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    """That tokenizer, loaded from its folder; each test may change its own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


# -- models --------------------------------------------------------------------------------

#: what every architecture below has in common, in the words of most configs
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,  # logits that differ by whole nats: errors cannot hide in them
}

#: name -> (config class, model class, what differs from `_SHAPE`)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.15},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    # Soft caps in the attention (its own eager function) and on the final logits.
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "cohere": ("CohereConfig", "CohereForCausalLM", {"logit_scale": 0.25}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 3.0}),
    # A hybrid with linear-attention layers: packing several sequences in a row is wrong here.
    "qwen3_next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
}

MakeModel = Callable[..., "PreTrainedModel"]


@pytest.fixture
def make_model(tiny_tokenizer: PreTrainedTokenizerFast) -> MakeModel:
    """`make_model(architecture="llama", *, seed=0, **config)`: a tiny model with seeded weights.

    Architectures: the keys of `ARCHITECTURES`. Two calls with one seed give equal weights;
    the global random state is left as it was.
    """

    def make(architecture: str = "llama", *, seed: int = 0, **config: Any) -> PreTrainedModel:
        import torch
        import transformers

        config_name, model_name, own = ARCHITECTURES[architecture]
        shape = {} if architecture == "gpt2" else _SHAPE
        settings = {
            "vocab_size": len(tiny_tokenizer),
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "bos_token_id": tiny_tokenizer.bos_token_id,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            **shape,
            **own,
            **config,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, model_name)(
                getattr(transformers, config_name)(**settings)
            )
        return model.eval()

    return make


@pytest.fixture
def make_policy(
    make_model: MakeModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Policy]:
    """`make_policy(architecture="llama", *, seed=0, **config)`: the model with its tokenizer."""
    from prefopt.policies.load import Policy

    def make(architecture: str = "llama", *, seed: int = 0, **config: Any) -> Policy:
        return Policy(make_model(architecture, seed=seed, **config), tiny_tokenizer)

    return make


@pytest.fixture
def save_policy(
    make_model: MakeModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., Path]:
    """`save_policy(architecture="llama", *, seed=0, **config)`: a model folder."""

    def save(architecture: str = "llama", *, seed: int = 0, **config: Any) -> Path:
        folder = tmp_path / f"{architecture}-{seed}"
        make_model(architecture, seed=seed, **config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def tiny_policy_folder(save_policy: Callable[..., Path]) -> Path:
    """A folder with a two-layer Llama and its tokenizer."""
    return save_policy("llama")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """One seed and deterministic algorithms for the length of a test."""
    import torch

    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, stdout, stderr."""
    from prefopt.cli.app import run

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
