"""Replies that are kept one by one, for whoever needs several of them before there is a result.

A verdict is kept when it is there (`kept`), and a debate of three rounds is six replies and a
verdict. A process that is killed in the middle has lost what was on its way, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefopt.judges.lines import Lines
from prefopt.judges.speaking import NO_REPLY, Ask, Said, Speaker


class Remembered:
    """A speaker whose replies are on disk before anybody hears of them; none is asked for twice.

    Args:
        speaker: who is asked what is not known.
        folder: where replies are kept, in a file for each speaker.

    Attributes:
        asked: the speaker.
    """

    def __init__(self, speaker: Speaker, folder: Path) -> None:
        if isinstance(speaker, Remembered):  # the last folder that was named
            speaker = speaker.asked
        self.name = speaker.name
        who = json.dumps(dict(speaker.identity()), sort_keys=True).encode()
        digest = hashlib.sha256(who).hexdigest()[:24]
        self.asked: Speaker = speaker
        self._lines = Lines(folder / f"{digest}.replies.jsonl")

    def identity(self) -> Mapping[str, Any]:
        return self.asked.identity()

    def say(self, asks: Sequence[Ask], *, max_new_tokens: int) -> Iterator[tuple[int, Said]]:
        self._lines.refresh()
        keys = [_key(ask, max_new_tokens) for ask in asks]
        known = {place: line for place, key in enumerate(keys) if (line := self._lines.get(key))}
        for place, line in known.items():
            yield place, Said(**line["said"])
        places = [place for place in range(len(asks)) if place not in known]
        if not places:
            return
        missing = [asks[place] for place in places]
        coming: Any = self.asked.say(missing, max_new_tokens=max_new_tokens)
        with closing(coming):
            for position, said in coming:
                place = places[position]
                if said.failure not in NO_REPLY:
                    self._lines.add([{"key": keys[place], "said": asdict(said)}])
                yield place, said

    def weigh(
        self, texts: Sequence[str], answers: Sequence[str]
    ) -> Iterator[tuple[int, list[float] | Said]]:
        return self.asked.weigh(texts, answers)


def remember_in(folder: Path, *these: Any) -> None:
    """Let all of them that ask somebody on the way to a verdict keep the replies."""
    for one in these:
        if hasattr(one, "remember_in"):
            one.remember_in(folder)


def _key(ask: Ask, max_new_tokens: int) -> str:
    content = json.dumps([ask.text, ask.seed, ask.temperature, max_new_tokens])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
