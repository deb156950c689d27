"""Who answers prompts: a policy on this machine, or a model behind a server. One protocol.

A completion is text with what is known of it; how many there are and how they are drawn is the
same for both (`Settings`). On this machine a sample depends on the policy, the seed, its prompt
and its number alone. A server is given seeds that are made of the same, and does with them what
it can: most say that they do their best.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prefopt.errors import PrefoptError, RecipeError
from prefopt.records import Message, Prompt, prompt_key
from prefopt.sampling.failures import RefusedPrompt
from prefopt.sampling.retrying import Patience
from prefopt.sampling.server import Request, Server
from prefopt.sampling.settings import Settings
from prefopt.sampling.wire import Finish

if TYPE_CHECKING:
    from prefopt.policies.load import Policy


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Attributes:
        text: without special tokens, end of turn and what of `stop` ended it.
        finish: `end` by itself, `length` cut, `stop` at a text of `stop`, `filtered` by a server.
        logp: log π in nats, where it is known; of a policy on this machine at temperature 1
            over all tokens, whatever it was drawn with.
    """

    text: str
    finish: Finish
    logp: float | None = None


#: called with (position of a prompt, its samples) as soon as it has all
OnDone = Callable[[int, list[Sample]], None]
#: called with (position of a prompt, why it alone cannot be answered)
OnRefused = Callable[[int, PrefoptError], None]


@runtime_checkable
class Sampler(Protocol):
    """Who answers prompts."""

    @property
    def name(self) -> str:
        """What the completions are said to come from: a folder, or a served model."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Everything beside `Settings` and prompts that samples depend on, as plain JSON."""
        ...

    def sample_all(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        on_done: OnDone | None = None,
        on_refused: OnRefused | None = None,
    ) -> list[list[Sample]]:
        """`settings.n` samples of each prompt, in order; a prompt given twice gets other ones.

        A prompt that alone cannot be answered (too long, mostly) has none, and `on_refused` is
        told why; without it, it ends everything.
        """
        ...


class LocalSampler:
    """A policy on this machine.

    Args:
        policy: model and tokenizer.
        batch_size: completions computed at once; never changes the result.
        name: what the completions are said to come from; the policy's by default.
    """

    def __init__(self, policy: Policy, *, batch_size: int = 32, name: str | None = None) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self.name = name or policy.name

    def identity(self) -> dict[str, Any]:
        """Digests of the weights and the tokenizer: not where they lie."""
        from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer

        return {
            "kind": "local",
            "model": fingerprint_model(self.policy.model),
            "tokenizer": fingerprint_tokenizer(self.policy.tokenizer),
        }

    def sample_all(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        on_done: OnDone | None = None,
        on_refused: OnRefused | None = None,
    ) -> list[list[Sample]]:
        """Samples that do not depend on the batch or on each other.

        Raises:
            DataError: a prompt has no tokens, or leaves no room for an answer.
        """
        from prefopt.sampling.generate import Drawn, draw, text_of, unfit

        refused = unfit(self.policy, prompts, settings.max_new_tokens) if on_refused else {}
        for position, error in refused.items():
            assert on_refused is not None
            on_refused(position, error)
        places = [place for place in range(len(prompts)) if place not in refused]

        def sample(drawn: Drawn) -> Sample:
            ended = int(drawn.ids[-1]) in self.policy.end_of_turn
            finish: Finish = "end" if ended else "stop" if drawn.stopped else "length"
            return Sample(text_of(self.policy, drawn.ids, settings.stop), finish, drawn.logp)

        def hand_over(position: int, drawn: list[Drawn]) -> None:
            if on_done is not None:
                on_done(places[position], [sample(item) for item in drawn])

        samples: list[list[Sample]] = [[] for _ in prompts]
        fit = [prompts[place] for place in places]
        drawn = draw(self.policy, fit, settings, batch_size=self.batch_size, on_done=hand_over)
        for place, own in zip(places, drawn, strict=True):
            samples[place] = [sample(item) for item in own]
        return samples


class ServerSampler:
    """A model behind a server.

    Args:
        server: where, and which model.
        as_chat: send a text as what a user says, rather than as a text to go on with.
    """

    def __init__(self, server: Server, *, as_chat: bool = False) -> None:
        self.server = server
        self.as_chat = as_chat

    @property
    def name(self) -> str:
        return self.server.model

    def identity(self) -> dict[str, Any]:
        """The server's own, and how texts are sent.

        Raises:
            ServerError: nothing answers there, or it is not said which of several models.
        """
        return {"kind": "server", **self.server.identity(), "as_chat": self.as_chat}

    def sample_all(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        on_done: OnDone | None = None,
        on_refused: OnRefused | None = None,
    ) -> list[list[Sample]]:
        """Samples as they come; those that came were handed over before an error is raised.

        Raises:
            ServerError: the server refuses, or keeps failing.
        """
        seen: Counter[bytes] = Counter()
        requests = []
        for prompt in prompts:
            key = prompt_key(prompt)
            requests.append(self._request(prompt, settings, seed_of(settings.seed, key, seen[key])))
            seen[key] += settings.n
        samples: list[list[Sample]] = [[] for _ in prompts]
        ask = self.server.outcomes if on_refused else self.server.replies
        with closing(ask(requests)) as coming:
            for position, outcome in coming:
                if isinstance(outcome, RefusedPrompt):
                    assert on_refused is not None
                    on_refused(position, outcome)
                    continue
                samples[position] = [
                    Sample(answer.text, answer.finish, answer.logp) for answer in outcome.answers
                ]
                if on_done is not None:
                    on_done(position, samples[position])
        return samples

    def _request(self, prompt: Prompt, settings: Settings, seed: int) -> Request:
        if isinstance(prompt, str) and self.as_chat:
            prompt = (Message("user", prompt),)
        return Request(
            prompt,
            n=settings.n,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=seed,
            stop=settings.stop,
            max_tokens=settings.max_new_tokens,
        )


def seed_of(seed: int, key: bytes, index: int) -> int:
    """A seed of 31 bits that belongs to the samples of one prompt from a number on."""
    digest = hashlib.blake2b(f"{seed}:{index}:".encode() + key, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 33


#: what a mapping may say of a sampler beside where it is
_OF_A_SERVER = {"server", "model", "key", "concurrency", "kind", "as_chat"}
_PATIENCE = set(Patience.__dataclass_fields__)
_OF_A_POLICY = {"policy", "device", "batch_size"}


def make_sampler(spec: str | Mapping[str, Any]) -> Sampler:
    """A sampler from a folder, a hub id, a URL, or a mapping.

    Args:
        spec: a run's or model folder or a hub id; `http://…`, `https://…` or `server:URL`; or a
            mapping with `policy` (and `device`, `batch_size`) or `server` (and `model`, `key`,
            `concurrency`, `kind`, `as_chat`, and the fields of `Patience`).

    Raises:
        RecipeError: it says neither or both, or something that has no effect.
        PolicyError: there is no such policy.
    """
    if isinstance(spec, str):
        url = spec.removeprefix("server:")
        return make_sampler({"server" if is_url(url) else "policy": url})
    named = {"server", "policy"} & set(spec)
    if len(named) != 1:
        raise RecipeError(
            "a sampler is a policy or a server",
            field="policy",
            value=dict(spec),
            remedy="give one of policy: FOLDER and server: URL",
        )
    allowed = _OF_A_SERVER | _PATIENCE if "server" in named else _OF_A_POLICY
    if unknown := set(spec) - allowed:
        raise RecipeError(
            f"has no effect on a {named.pop()}",
            field=sorted(unknown)[0],
            remedy=f"it takes {', '.join(sorted(allowed))}",
        )
    return _served(spec) if "server" in spec else _loaded(spec)


def is_url(text: str) -> bool:
    """Whether a text names a server rather than a folder."""
    return text.startswith(("http://", "https://"))


def _served(spec: Mapping[str, Any]) -> ServerSampler:
    options = {name: spec[name] for name in ("model", "key", "concurrency", "kind") if name in spec}
    patience = Patience(**{name: spec[name] for name in _PATIENCE & set(spec)})
    server = Server(spec["server"], patience=patience, **options)
    return ServerSampler(server, as_chat=spec.get("as_chat", False))


def _loaded(spec: Mapping[str, Any]) -> LocalSampler:
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy

    name = str(spec["policy"])
    policy = load_policy(model_folder(name), device=spec.get("device"))
    return LocalSampler(policy, batch_size=spec.get("batch_size", 32), name=name)
