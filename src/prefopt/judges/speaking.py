"""Who answers a judge's questions: a language model on this machine, or behind a server.

A speaker does two things: it writes (`say`), and it tells how probable an answer of a few letters
is (`weigh`), which needs no parsing. Both hand over what they have as it comes, so that whoever
keeps it has lost nothing when the rest fails.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from prefopt.errors import RecipeError
from prefopt.judges.weighing import mass
from prefopt.records import Message, Prompt, prompt_key
from prefopt.sampling.failures import RefusedPrompt

if TYPE_CHECKING:
    from prefopt.engine.logps import Scorer
    from prefopt.engine.tokens import Ids
    from prefopt.policies.load import Policy
    from prefopt.sampling.server import Server
    from prefopt.sampling.wire import Reply

#: most alternatives that servers give with a token
_TOP = 20
_MICROBATCH_TOKENS = 8192
#: failures of a question that got no reply at all, so that it cost nothing
NO_REPLY = frozenset(("too_long", "refused"))


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        text: what is asked, as one turn of a user.
        seed: of the reply; another one, another reply.
        temperature: 0 for the most probable reply.
    """

    text: str
    seed: int = 0
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Said:
    """What became of a request.

    Attributes:
        text: the reply; None if there is none, and would be none if it were asked again.
        cut: whether the reply ended for lack of room, in the middle of something.
        failure: why there is none: `too_long` for the model, `refused` by its server, or
            `filtered` by it.
        words: the same in words; of a server's refusal its own.
    """

    text: str | None
    cut: bool = False
    failure: str = ""
    words: str = ""

    @property
    def answer(self) -> str:
        """What was said after thinking aloud; nothing of thoughts that did not end.

        >>> Said("<think>Is it A, or [[B]]?</think> [[A]]").answer
        '[[A]]'
        """
        _, end, after = (self.text or "").rpartition("</think>")
        return (after if end else after.partition("<think>")[0]).strip()


class Speaker(Protocol):
    """A language model that can be asked."""

    #: what distinguishes it: `lm:runs/judge`, `server:gpt-x`
    name: str

    def identity(self) -> Mapping[str, Any]:
        """Everything that its replies depend on beside what it is asked, as plain JSON."""
        ...

    def say(self, asks: Sequence[Ask], *, max_new_tokens: int) -> Iterator[tuple[int, Said]]:
        """(position, reply) as they come."""
        ...

    def weigh(
        self, texts: Sequence[str], answers: Sequence[str]
    ) -> Iterator[tuple[int, list[float] | Said]]:
        """(position, log-probability of each answer as the beginning of the reply), as they come.

        In nats; −∞ for an answer that a server does not list among the likeliest.
        """
        ...


class LocalSpeaker:
    """A policy in this process.

    Args:
        policy: with a chat template it answers a user's turn; without one it continues the text.
        batch_size: replies generated at once; never changes them.
    """

    def __init__(self, policy: Policy, *, batch_size: int = 8) -> None:
        self.name = f"lm:{policy.name}"
        self._policy = policy
        self._batch_size = batch_size

    def identity(self) -> Mapping[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer

        return {
            "model": fingerprint_model(self._policy.model),
            "tokenizer": fingerprint_tokenizer(self._policy.tokenizer),
            "ends": sorted(self._policy.end_of_turn),
        }

    def say(self, asks: Sequence[Ask], *, max_new_tokens: int) -> Iterator[tuple[int, Said]]:
        room = []
        for position, ask in enumerate(asks):
            if (refusal := self._too_long(self._ids(ask.text), max_new_tokens)) is not None:
                yield position, refusal
            else:
                room.append(position)
        # Asks of one question stand together and have several seeds, of which a batch has one: a
        # window with a batch of each gives whole questions before the next ones begin.
        window = self._batch_size * max(1, len({(ask.seed, ask.temperature) for ask in asks}))
        for start in range(0, len(room), window):
            alike: dict[tuple[int, float], list[int]] = defaultdict(list)
            for position in room[start : start + window]:
                alike[asks[position].seed, asks[position].temperature].append(position)
            for (seed, temperature), positions in alike.items():
                texts = [asks[position].text for position in positions]
                replies = self._replies(texts, seed, temperature, max_new_tokens)
                yield from zip(positions, replies, strict=True)

    def _replies(
        self, texts: Sequence[str], seed: int, temperature: float, max_new_tokens: int
    ) -> list[Said]:
        from prefopt.sampling.generate import draw, text_of
        from prefopt.sampling.settings import Settings

        settings = Settings(1, max_new_tokens, temperature, seed=seed)
        prompts = [self._prompt(text) for text in texts]
        drawn = draw(self._policy, prompts, settings, batch_size=self._batch_size)
        ends = self._policy.end_of_turn
        return [
            Said(text_of(self._policy, one.ids), cut=int(one.ids[-1]) not in ends)
            for (one,) in drawn
        ]

    def _too_long(self, ids: Ids, room: int) -> Said | None:
        limit = self._policy.max_length
        if limit is None or len(ids) + room <= limit:
            return None
        words = f"{len(ids)} tokens and {room} for the reply, and the model is made for {limit}"
        return Said(None, failure="too_long", words=words)

    def weigh(
        self, texts: Sequence[str], answers: Sequence[str]
    ) -> Iterator[tuple[int, list[float] | Said]]:
        import torch

        from prefopt.engine.forest import pack
        from prefopt.engine.tokens import TokenGroup

        endings = tuple(self._answer_ids(answer) for answer in answers)
        longest = max(len(ids) for ids in endings)
        groups, places = [], []
        for position, text in enumerate(texts):
            ids = self._ids(text)
            if (refusal := self._too_long(ids, longest)) is not None:
                yield position, refusal
            else:
                groups.append(TokenGroup(ids, endings))
                places.append(position)
        if not groups:
            return
        for positions in pack(groups, _MICROBATCH_TOKENS):
            with torch.no_grad():
                logps = self._scorer([groups[position] for position in positions]).double().cpu()
            for position, row in zip(positions, logps.view(-1, len(answers)), strict=True):
                yield places[position], row.tolist()

    @cached_property
    def _scorer(self) -> Scorer:
        from prefopt.engine.logps import Scorer

        return Scorer(self._policy.model.eval())

    @property
    def _chats(self) -> bool:
        return bool(self._policy.tokenizer.chat_template)

    def _prompt(self, text: str) -> Prompt:
        return (Message("user", text),) if self._chats else f"{text}\n"

    def _ids(self, text: str) -> Ids:
        ids: Ids = self._encoder.prompt_ids(self._prompt(text))
        return ids

    def _answer_ids(self, answer: str) -> Ids:
        import numpy as np

        ids = self._policy.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    @cached_property
    def _encoder(self) -> Any:
        from prefopt.engine.tokens import Encoder

        return Encoder(self._policy.tokenizer, end_of_turn=self._policy.end_of_turn)


class ServedSpeaker:
    """A model behind an OpenAI-compatible server, asked as a user would.

    Args:
        server: the client; it is asked at once what it serves.
    """

    def __init__(self, server: Server) -> None:
        self.name = f"server:{server.model}"
        self._server = server

    def identity(self) -> Mapping[str, Any]:
        return self._server.identity()

    def say(self, asks: Sequence[Ask], *, max_new_tokens: int) -> Iterator[tuple[int, Said]]:
        from prefopt.sampling.sampler import seed_of
        from prefopt.sampling.wire import Request

        requests = []
        for ask in asks:
            prompt = (Message("user", ask.text),)
            # One seed for every text would toss one coin for all questions and for both orders.
            seed = seed_of(ask.seed, prompt_key(prompt), 0)
            requests.append(
                Request(prompt, 1, ask.temperature, seed=seed, max_tokens=max_new_tokens)
            )
        with closing(self._server.outcomes(requests)) as coming:
            for position, outcome in coming:
                yield position, _said(outcome)

    def weigh(
        self, texts: Sequence[str], answers: Sequence[str]
    ) -> Iterator[tuple[int, list[float] | Said]]:
        from prefopt.sampling.wire import Request

        requests = [
            Request((Message("user", text),), temperature=0.0, max_tokens=1, top_logprobs=_TOP)
            for text in texts
        ]
        with closing(self._server.outcomes(requests)) as coming:
            for position, outcome in coming:
                said = _said(outcome)
                if said.text is None or isinstance(outcome, RefusedPrompt):
                    yield position, said
                    continue
                tokens = outcome.answers[0].tokens
                if tokens is None:
                    raise RecipeError(
                        f"the server of {self._server.model} gives no log-probabilities",
                        field="mode",
                        value="logprobs",
                        remedy="set mode: text, or use a server that has them (vLLM, SGLang, "
                        "llama.cpp)",
                    )
                top = {tokens[0].text: tokens[0].logp, **tokens[0].top} if tokens else {}
                yield position, [mass(top, answer) for answer in answers]


def _said(outcome: Reply | RefusedPrompt) -> Said:
    if isinstance(outcome, RefusedPrompt):
        return Said(None, failure="refused", words=outcome.message)
    answer = outcome.answers[0]
    if answer.finish == "filtered":
        return Said(None, failure="filtered", words="the server's filter held the reply back")
    return Said(answer.text, cut=answer.finish == "length")


def local_speaker(model: str, *, device: str | None, batch_size: int) -> LocalSpeaker:
    """A model folder, a run's folder or a hub id.

    Raises:
        PolicyError: it cannot be loaded.
    """
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy

    return LocalSpeaker(load_policy(model_folder(model), device=device), batch_size=batch_size)


def served_speaker(
    url: str,
    model: str | None = None,
    *,
    key: str | None = None,
    concurrency: int = 16,
    timeout: float = 120.0,
    resends: int = 8,
) -> ServedSpeaker:
    """A model behind a server.

    Raises:
        MissingExtraError: the package openai is not installed.
        RecipeError: the URL is none.
        ServerError: nothing answers there.
    """
    from prefopt.sampling.retrying import Patience
    from prefopt.sampling.server import Server

    patience = Patience(timeout=timeout, retries=resends)
    return ServedSpeaker(Server(url, model, key=key, concurrency=concurrency, patience=patience))
