"""Clean preferences made of nothing, and faults that are planted in them at known rows.

`clean` writes rows of readable English (some in German, Spanish and Russian) in which nothing is
wrong by construction: the preferred side is drawn like the other one, prompts have little in
common, and of several comparisons of a prompt one order holds. `plant` then breaks known rows, one
way at a time, and `skew` gives a whole file one habit that it should not have.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]

# -- words ---------------------------------------------------------------------------------

NOUNS = """
almanac anchor apron archive attic badger bakery balcony ballad bamboo banjo barley barometer basin
basket beacon beehive bicycle biscuit blanket blueprint boiler bookshelf bottle bramble brewery
bridge bucket button cabin cactus calendar camera candle canoe canyon carpenter carriage cartoon
castle cathedral ceiling cellar cello chapel charter chemist cherry chimney chisel cinema circus
clarinet clinic cloak coast cobbler comet compass concert copper coral cottage courtyard cradle
crater cricket crystal cupboard curtain cyclist dairy dictionary diploma dolphin donkey drawer
drummer eclipse elevator embassy emerald engine envelope estuary falcon farmer feather ferry fiddle
filter fireplace flagpole flannel florist flute fortress fountain foundry furnace gallery gardener
garlic gazelle geyser glacier glider goblet grammar granite guitar hammock harbour harvest hedge
helmet heron hillside honey hospital hostel iceberg inkwell island ivory jacket jasmine jigsaw
journal juniper kayak kettle kiosk kitchen ladder lagoon lantern laundry lavender ledger leopard
library lighthouse lizard locket lumber magnet mailbox mango marble market meadow melody merchant
meteor mill mirror monastery mosaic mountain museum mustard napkin nectar needle nursery oasis
orchard orchestra otter oven oyster paddle painter palace pamphlet parcel parrot pasture pebble
pelican pepper piano pigeon pillow planet plaster plumber pocket porcelain postcard pottery pulley
puppet pyramid quarry quilt rabbit radio railway raven recipe reef ribbon river rocket saddle sailor
sandal satchel sawmill scarecrow schooner scooter shepherd shutter silo skylark sleigh smithy spider
spindle stable statue stove submarine sundial swan tailor tapestry tavern teapot telescope temple
theatre thistle timber tortoise tractor trumpet tunnel turbine umbrella valley vault veranda village
vineyard violin volcano wagon walnut warehouse waterfall weaver whistle willow windmill workshop
""".split()
ADJECTIVES = """
ancient amber brave brittle broad busy calm careful cheap clever clumsy coarse cold crooked curious
damp dark distant dusty eager early elegant empty faded faint famous fancy fierce foreign fragile
fresh generous gentle giant golden grand hollow humble idle jolly large lazy local lonely loud lucky
mellow modest muddy narrow neat noisy odd old pale patient plain polite proud quiet rare rough rusty
shallow sharp shiny shy silent slender slow small smooth solid sour steep sticky stout strange
sturdy subtle sunny tall tame thick tidy tiny tired tough vast warm weary wide wild wise young
""".split()
VERBS = """
carries follows paints repairs guards polishes measures sketches visits borrows collects describes
lifts gathers studies watches covers shelters balances inspects delivers restores surrounds prepares
decorates circles cleans records warms replaces explains supports blocks photographs rescues sorts
""".split()
BASES = """
carry follow paint repair guard polish measure sketch visit borrow collect describe lift gather
study watch cover shelter balance inspect deliver restore surround prepare decorate clean record
replace explain support photograph rescue sort arrange choose compare draw build weigh label plant
""".split()
PLACES = """
Bergen Lisbon Kyoto Dublin Quito Tartu Gdansk Porto Leeds Hobart Nairobi Cusco Turin Ghent Malmo
Bristol Oaxaca Hanoi Tromso Split Lyon Bilbao Perth Cork Utrecht Graz Sofia Dakar Mendoza Galway
""".split()

_STATEMENTS = (
    "The {a} {n} {v} a {a} {n} near the {n}.",
    "In {p}, every {n} {v} the {a} {n} before the {n} is {a}.",
    "A {n} is {a} because the {n} behind it {v} some {a} {n}.",
    "My neighbour from {p} says that a {a} {n} {v} the {n}.",
    "You could {b} the {n} first and then {b} the {a} {n} with it.",
    "It helps to {b} a {n} while the {a} {n} {v} your {n}.",
    "Most people who {b} a {n} in {p} also {b} the {a} {n}.",
    "When the {n} is {a}, the {n} {v} whatever the {n} was meant for.",
    "Since the {a} {n} came to {p}, nobody {v} the {n} any more.",
    "There are two ways to {b} the {n}: with a {a} {n}, or without one.",
    "Without a {n} the {a} {n} rarely {v} more than a {n}.",
    "Try to {b} the {a} {n} slowly, as a {n} would in {p}.",
    "Perhaps the {n} only {v} what another {a} {n} has left over.",
    "Nobody should {b} a {a} {n} when the {n} is so {a}.",
)
_QUESTIONS = (
    "How would you {b} a {a} {n} for the {n} in {p}?",
    "Why does the {a} {n} look so {a} beside a {n}?",
    "Can you {b} my {n} and tell me which {n} is more {a}?",
    "What should I {b} first, the {a} {n} or the {n} from {p}?",
    "Which {n} in {p} {v} the most {a} {n}, and why?",
    "Please {b} a {n} for somebody who has never seen a {a} {n}.",
    "Is it wise to {b} a {n} when the {a} {n} is from {p}?",
    "Write a few lines about a {a} {n} that {v} a {n}.",
    "Who first thought to {b} a {n} with a {a} {n}?",
    "I need to {b} a {a} {n} before the {n} opens. Where do I begin?",
    "Give me three reasons to {b} the {n} of a {a} {n}.",
    "Tell me what a {n} and a {a} {n} have in common.",
)
_CONTEXTS = (
    "I have a {a} {n} and {k} {a} {n}s from {p}.",
    "My {n} is {a}, and the {n} next door {v} a {n}.",
    "Last week our {a} {n} broke while we tried to {b} the {n}.",
    "For a school project on the {a} {n} I have to {b} a {n}.",
    "Somebody in {p} gave me {k} {n}s and one {a} {n}.",
    "There is a {a} {n} in front of the {n} that {v} every {n}.",
)
_COUNTS = ("three", "four", "five", "seven", "nine", "eleven", "twelve", "twenty")

#: language → sentences for prompts, sentences for answers, words for both
FOREIGN: dict[str, tuple[tuple[str, ...], tuple[str, ...], Sequence[str]]] = {
    "german": (
        (
            "Kannst du mir erklären, warum {0} im Winter mehr hält als {1} und was {2} ändert?",
            "Ich suche für meine Schwester {0}, aber sie hat schon {1}. Was hältst du von {2}?",
            "Wie bringe ich {0} auf den Dachboden, ohne dass {1} oder {2} dabei kaputtgeht?",
        ),
        (
            "Am besten stellst du {0} zuerst neben {1} und wartest, bis {2} trocken ist.",
            "Viele Leute glauben, dass {0} besser als {1} ist, doch ohne {2} stimmt das nicht.",
            "Wenn {0} zu schwer wird, hilft dir {1}, und danach kannst du {2} wieder abbauen.",
            "Früher hat man {0} nur mit {1} verkauft, heute bekommt man dafür eher {2}.",
        ),
        (
            "der alte Kachelofen", "die grüne Laterne", "das Fahrrad des Bäckers", "ein Sattel",
            "die Werkstatt", "mein Regenschirm", "das Kochbuch", "der Gartenzaun",
            "eine lange Leiter", "das Segelboot", "der Korb", "die Kaffeemühle", "ein Teppich",
            "der schmale Schrank", "die Nähmaschine", "das Klavier im Keller", "ein Vogelhaus",
        ),
    ),
    "spanish": (
        (
            "¿Puedes decirme por qué {0} dura más que {1} cuando no hay {2} en la casa?",
            "Quiero regalarle a mi hermano {0}, pero ya tiene {1}. ¿Qué piensas de {2}?",
            "¿Cómo puedo llevar {0} hasta el pueblo sin que {1} o {2} se rompan por el camino?",
        ),
        (
            "Lo mejor es poner {0} al lado de {1} y esperar hasta que {2} esté seco.",
            "Mucha gente cree que {0} es mejor que {1}, pero sin {2} eso no es cierto.",
            "Si {0} pesa demasiado, te ayuda {1}, y después puedes guardar {2} otra vez.",
            "Antes se vendía {0} solamente con {1}; ahora por ese precio dan más bien {2}.",
        ),
        (
            "el horno viejo", "una lámpara verde", "la bicicleta del panadero", "el taller pequeño",
            "mi paraguas negro", "el libro de cocina", "la cerca del jardín", "una escalera larga",
            "el barco de vela", "la cesta de ropa", "un molinillo", "la alfombra roja",
            "el armario estrecho", "una máquina de coser", "el piano del sótano", "la silla",
        ),
    ),
    "russian": (
        (
            "Объясни, пожалуйста, почему {0} служит дольше, чем {1}, если рядом стоит {2}?",
            "Я хочу подарить брату {0}, но у него уже есть {1}. Что ты думаешь про {2}?",
            "Как мне отвезти {0} в деревню, чтобы {1} или {2} не сломались по дороге?",
        ),
        (
            "Лучше всего поставить {0} рядом с тем, где {1}, и подождать, пока высохнет {2}.",
            "Многие думают, что {0} лучше, чем {1}, но если убрать {2}, это уже не так.",
            "Когда {0} становится слишком тяжёлым, поможет {1}, а потом можно убрать {2}.",
            "Раньше {0} продавали только вместе, где был {1}, а теперь чаще дают {2}.",
        ),
        (
            "старый самовар", "зелёный фонарь", "велосипед пекаря", "станок", "чёрный зонт",
            "бабушкин сундук", "садовый забор", "длинный шест", "парусный плот", "бельевой короб",
            "медный чайник", "красный ковёр", "узкий шкаф", "швейный набор", "домашний рояль",
        ),
    ),
}  # fmt: skip


class Writer:
    """Writes sentences; the same seed writes the same."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def fill(self, template: str, nouns: Sequence[str] = NOUNS) -> str:
        """A template with a word of the right kind in each slot."""
        kinds = {"n": nouns, "a": ADJECTIVES, "v": VERBS, "b": BASES, "p": PLACES, "k": _COUNTS}
        text = re.sub(r"\{(\w)\}", lambda slot: self.random.choice(kinds[slot[1]]), template)
        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)

    def prompt(self, nouns: Sequence[str] = NOUNS) -> str:
        """Two contexts and a question."""
        contexts = self.random.sample(_CONTEXTS, self.random.choice((1, 2)))
        question = self.random.choice(_QUESTIONS)
        return " ".join(self.fill(part, nouns) for part in (*contexts, question))

    def answer(self, low: int = 2, high: int = 6, nouns: Sequence[str] = NOUNS) -> str:
        """A few sentences, now and then with a list, a heading, bold words, code or a refusal."""
        said = [self.fill(self.random.choice(_STATEMENTS), nouns)
                for _ in range(self.random.randint(low, high))]  # fmt: skip
        look = self.random.random()
        if look < 0.08:
            return self.listed(said)
        if look < 0.12:
            return f"## {said[0].rstrip('.')}\n\n{' '.join(said[1:])}"
        if look < 0.16:
            return self.bold(said)
        if look < 0.19:
            return f"{' '.join(said)}\n\n```python\nprint({self.random.randint(2, 99)})\n```"
        if look < 0.22:
            return f"I'm sorry, but I can't help with that. {' '.join(said)}"
        if look < 0.24:  # as some editors write it
            return "Café, naïve, 5 °C – “so it goes”…\r\n" + "\r\n".join(said)
        return " ".join(said)

    def listed(self, said: Sequence[str]) -> str:
        """The same sentences as a list."""
        return f"{said[0]}\n\n" + "\n".join(f"- {line}" for line in said[1:])

    def bold(self, said: Sequence[str]) -> str:
        """The same sentences, the first one bold."""
        return f"**{said[0]}** {' '.join(said[1:])}"

    def foreign(self, language: str) -> tuple[str, str, str]:
        """A prompt and two different answers of that language."""
        prompts, answers, words = FOREIGN[language]

        def say(template: str) -> str:
            text = template.format(*self.random.sample(words, 3))
            return text[0].upper() + text[1:]

        first, second, third, fourth = self.random.sample(answers, 4)
        asked = say(self.random.choice(prompts))
        return asked, f"{say(first)} {say(second)}", f"{say(third)} {say(fourth)}"


# -- clean rows ----------------------------------------------------------------------------


@dataclass
class Pair:
    """One comparison before it has a layout.

    Attributes:
        several: there are further comparisons of its prompt, so that faults are not planted here.
        language: of the prompt and of both sides.
    """

    prompt: str
    chosen: str
    rejected: str
    extra: Row = field(default_factory=dict)
    several: bool = False
    language: str = "english"


def clean(rows: int, seed: int = 0) -> list[Pair]:
    """Rows in which nothing is wrong, in random order."""
    writer = Writer(seed)
    pairs: list[Pair] = []
    while len(pairs) < rows:
        kind = writer.random.random()
        if kind < 0.03:
            language = writer.random.choice(list(FOREIGN))
            pairs.append(Pair(*writer.foreign(language), language=language))
        elif kind < 0.06 and len(pairs) < rows - 3:
            pairs += _ranking(writer)
        else:
            pairs.append(Pair(writer.prompt(), writer.answer(), writer.answer()))
    writer.random.shuffle(pairs)
    for place, pair in enumerate(pairs):
        pair.extra = {
            "source": ("forum", "helpdesk", "survey")[place % 3],
            "category": ("factuality", "safety", "style")[place // 3 % 3],
            "annotator": f"a{writer.random.randrange(12):02d}",
        }
    return pairs


def _ranking(writer: Writer) -> list[Pair]:
    """Three answers of one prompt and their three comparisons, which one order explains."""
    prompt = writer.prompt()
    best, middle, worst = (writer.answer() for _ in range(3))
    orders = ((best, middle), (middle, worst), (best, worst))
    return [Pair(prompt, better, worse, several=True) for better, worse in orders]


def clean_votes(rows: int, seed: int = 0, *, correct: float = 0.9, first: float = 0.0) -> list[Row]:
    """Rows of five votes on two answers, each of which is the better one half of the time.

    Args:
        rows: how many.
        seed: of everything.
        correct: how often a vote is for the better answer.
        first: the share of votes that are for what stands first, whatever it is.
    """
    writer = Writer(seed)
    made = []
    for _ in range(rows):
        better = writer.random.randrange(2)
        votes = []
        for annotator in writer.random.sample(range(15), 5):
            shown = writer.random.randrange(2)  # who stands first, for this annotator
            says = better if writer.random.random() < correct else 1 - better
            if writer.random.random() < first:
                says = shown
            choice = "first" if says == shown else "second"
            votes.append({"first": shown, "second": 1 - shown, "choice": choice,
                          "annotator": f"a{annotator:02d}"})  # fmt: skip
        made.append({"prompt": writer.prompt(), "completions": [writer.answer(), writer.answer()],
                     "votes": votes})  # fmt: skip
    return made


# -- layouts -------------------------------------------------------------------------------


def plain(pair: Pair) -> Row:
    """prompt, chosen and rejected as text."""
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, **pair.extra}


def chat(pair: Pair) -> Row:
    """prompt, chosen and rejected as messages."""
    sides = {name: [{"role": "assistant", "content": getattr(pair, name)}]
             for name in ("chosen", "rejected")}  # fmt: skip
    return {"prompt": [{"role": "user", "content": pair.prompt}], **sides, **pair.extra}


def transcript(pair: Pair) -> Row:
    """Anthropic's transcripts."""
    start = f"\n\nHuman: {pair.prompt}\n\nAssistant: "
    return {"chosen": start + pair.chosen, "rejected": start + pair.rejected, **pair.extra}


def own(pair: Pair) -> Row:
    """prefopt's own layout: completions, and a comparison by index."""
    extra = {key: value for key, value in pair.extra.items() if not key.startswith("score_")}
    completions: list[Row] = [{"text": pair.rejected}, {"text": pair.chosen}]
    for completion, side in zip(completions, ("rejected", "chosen"), strict=True):
        if f"score_{side}" in pair.extra:
            completion["score"] = pair.extra[f"score_{side}"]
    comparisons = [{"preferred": 1, "dispreferred": 0}]
    return {"prompt": pair.prompt, "completions": completions, "comparisons": comparisons,
            "source": extra.pop("source"), "meta": extra}  # fmt: skip


LAYOUTS: dict[str, Callable[[Pair], Row]] = {
    "plain": plain, "chat": chat, "transcript": transcript, "own": own,
}  # fmt: skip

# -- faults --------------------------------------------------------------------------------

Break = Callable[[Writer, list[Pair]], None]


@dataclass(frozen=True)
class Fault:
    """A way to break rows.

    Attributes:
        kind: under which it must be found.
        break_: changes as many pairs as `rows` says.
        layouts: where it can be told from something else.
    """

    kind: str
    break_: Break
    rows: int = 1
    layouts: tuple[str, ...] = tuple(LAYOUTS)


def _side(writer: Writer) -> str:
    return writer.random.choice(("chosen", "rejected"))


def _append(*endings: str) -> Break:
    """One side goes on with something that does not belong there."""

    def break_(writer: Writer, pairs: list[Pair]) -> None:
        side = _side(writer)
        ending = writer.random.choice(endings).replace("…", writer.prompt())
        setattr(pairs[0], side, getattr(pairs[0], side) + ending)

    return break_


def _prepend(*beginnings: str) -> Break:
    """One side begins with something that does not belong there."""

    def break_(writer: Writer, pairs: list[Pair]) -> None:
        side = _side(writer)
        setattr(pairs[0], side, writer.random.choice(beginnings) + getattr(pairs[0], side))

    return break_


def _within(*pieces: str) -> Break:
    """A piece between two words of a side or of the prompt."""

    def break_(writer: Writer, pairs: list[Pair]) -> None:
        part = writer.random.choice(("prompt", "chosen", "rejected"))
        words = getattr(pairs[0], part).split(" ")
        place = writer.random.randrange(1, len(words))
        words[place] = writer.random.choice(pieces) + words[place]
        setattr(pairs[0], part, " ".join(words))

    return break_


def _empty(writer: Writer, pairs: list[Pair]) -> None:
    setattr(pairs[0], _side(writer), writer.random.choice(("", " ", "\n\n")))


def _identical(writer: Writer, pairs: list[Pair]) -> None:
    pairs[0].rejected = pairs[0].chosen


def _nearly_identical(writer: Writer, pairs: list[Pair]) -> None:
    """The sides differ by white space or in the last character alone."""
    text = pairs[0].chosen
    pairs[0].rejected = writer.random.choice((f"{text}\n ", text.replace(" ", "  ", 1), f"{text}."))


def _upside_down(writer: Writer, pairs: list[Pair]) -> None:
    pairs[0].extra |= {"score_chosen": 2.0, "score_rejected": 7.5}


def _rendered(writer: Writer, pairs: list[Pair]) -> None:
    """The prompt as a chat template has written it."""
    asked = pairs[0].prompt
    pairs[0].prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"


def _prompt_again(writer: Writer, pairs: list[Pair]) -> None:
    side = _side(writer)
    setattr(pairs[0], side, f"{pairs[0].prompt} {getattr(pairs[0], side)}")


def _other_language(writer: Writer, pairs: list[Pair]) -> None:
    """Answers in a language that nobody spoke."""
    others = [language for language in FOREIGN if language != pairs[0].language]
    _, first, second = writer.foreign(writer.random.choice(others))
    setattr(pairs[0], _side(writer), f"{first} {second}")


def _misread(writer: Writer, pairs: list[Pair]) -> None:
    """UTF-8 that was read as if it were Windows-1252, or Latin-1."""
    side = _side(writer)
    marks = writer.random.choice(("It’s “fine” – isn’t it? ", "Die Brücke über den Fluß, schön. "))
    broken = marks.encode("utf-8").decode("cp1252", "ignore")
    setattr(pairs[0], side, broken + getattr(pairs[0], side))


def _again(writer: Writer, pairs: list[Pair]) -> None:
    _copy(pairs[0], pairs[1])


def _both_ways(writer: Writer, pairs: list[Pair]) -> None:
    _copy(pairs[0], pairs[1])
    pairs[1].chosen, pairs[1].rejected = pairs[1].rejected, pairs[1].chosen


def _copy(one: Pair, other: Pair) -> None:
    other.prompt, other.chosen, other.rejected = one.prompt, one.chosen, one.rejected
    other.extra["annotator"] = one.extra["annotator"]


def _prompt_nearly_again(writer: Writer, pairs: list[Pair]) -> None:
    """One word of a prompt of three sentences is another one; the answers are new."""
    pairs[0].prompt = f"{writer.prompt()} {writer.prompt()}"
    pairs[1].prompt = one_word_changed(writer, pairs[0].prompt)


def _pair_nearly_again(writer: Writer, pairs: list[Pair]) -> None:
    """A copy with a word changed in the prompt and on both sides."""
    pairs[0].prompt = f"{writer.prompt()} {writer.prompt()}"
    pairs[0].chosen, pairs[0].rejected = writer.answer(6, 8), writer.answer(6, 8)
    for part in ("prompt", "chosen", "rejected"):
        setattr(pairs[1], part, one_word_changed(writer, getattr(pairs[0], part)))


def one_word_changed(writer: Writer, text: str) -> str:
    """The text with one long word replaced by another."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    words[writer.random.choice(long)] = writer.random.choice(NOUNS)
    return " ".join(words)


def _round(writer: Writer, pairs: list[Pair]) -> None:
    """Three answers, each preferred to the next one, around."""
    answers = [writer.answer() for _ in pairs]
    for place, pair in enumerate(pairs):
        pair.prompt = pairs[0].prompt
        pair.chosen, pair.rejected = answers[place], answers[(place + 1) % len(pairs)]


FAULTS = (
    Fault("identical_sides", _identical),
    Fault("near_identical_sides", _nearly_identical, layouts=("plain", "chat", "own")),
    Fault("empty_completion", _empty),
    Fault("role_marker", _append("\n\nHuman: …", "\n\nUser: …"), layouts=("plain", "chat", "own")),
    Fault("role_marker", _append("\nUser: …"), layouts=("transcript",)),
    Fault("special_token", _append("<|endoftext|>", "</s>", "<pad><pad>", "<|eot_id|>")),
    Fault("special_token", _within("<|endoftext|> ", "<pad> ")),
    Fault("generation_prompt", _prepend("<|im_start|>assistant\n", "<|assistant|>\n")),
    Fault("doubled_token", _append("</s></s>", "<|endoftext|><|endoftext|>")),
    Fault("prompt_repeated", _prompt_again),
    Fault("score_order", _upside_down, layouts=("plain", "chat", "transcript")),
    Fault("score_contradiction", _upside_down, layouts=("own",)),
    Fault("rendered_prompt", _rendered, layouts=("plain", "own")),
    Fault("language_mismatch", _other_language),
    Fault("control_characters", _within("\x00", "\x08", "\x1b[0m", "\x7f")),
    Fault("mojibake", _misread),
    Fault("mojibake", _within("\ufffd\ufffd")),
    Fault("duplicate_pair", _again, rows=2),
    Fault("contradiction", _both_ways, rows=2),
    Fault("near_duplicate_prompt", _prompt_nearly_again, rows=2),
    Fault("near_duplicate_pair", _pair_nearly_again, rows=2),
    Fault("cycle", _round, rows=3),
)

BreakLine = Callable[[Row], str]
_SIDED = ("plain", "chat", "transcript")


def _changed(**columns: Any) -> BreakLine:
    return lambda row: json.dumps({**row, **columns})


def _without(column: str) -> BreakLine:
    return lambda row: json.dumps({key: row[key] for key in row if key != column})


def _turns(*roles: str) -> list[Row]:
    return [{"role": role, "content": "So it goes."} for role in roles]


def _half_a_character(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)[:40] + '\\ud83d"}'


def _split_differently(row: Row) -> str:
    """The rejected side answers an earlier turn of another conversation."""
    other = row["rejected"].replace("\n\nHuman: ", "\n\nHuman: Well then. ", 1)
    return json.dumps({**row, "rejected": other})


#: faults that no pair can hold: kind → (layouts, row → line of the file)
LINES: tuple[tuple[str, tuple[str, ...], BreakLine], ...] = (
    ("unreadable_row", tuple(LAYOUTS), lambda row: json.dumps(row)[:-9]),
    ("unreadable_row", tuple(LAYOUTS), lambda row: json.dumps([row])),
    ("unreadable_row", tuple(LAYOUTS), _half_a_character),
    ("missing_field", _SIDED, _without("rejected")),
    ("missing_field", _SIDED, _changed(chosen=None)),
    ("wrong_type", _SIDED, _changed(chosen=17)),
    ("out_of_range", _SIDED, _changed(probability=1.5)),
    ("out_of_range", ("own",), _changed(comparisons=[{"preferred": 7, "dispreferred": 0}])),
    ("unknown_layout", ("own",), _changed(note="kept elsewhere")),
    ("wrong_type", ("own",), _changed(completions=[{"text": 17}])),
    ("empty_prompt", ("plain",), _changed(prompt=" ")),
    ("empty_prompt", ("chat",), _changed(prompt=[])),
    ("unsupported_media", ("plain", "chat"), _changed(images=["cat.png"])),
    ("wrong_role", ("chat",), _changed(prompt=_turns("user", "assistant"))),
    ("several_turns", ("chat",), _changed(chosen=_turns("assistant", "user", "assistant"))),
    ("several_turns", ("transcript",), lambda row: json.dumps(
        {**row, "chosen": row["chosen"] + "\n\nHuman: And then?"})),
    ("prompt_mismatch", ("transcript",), _split_differently),
    ("mixed_layout", ("plain", "chat"),
     lambda row: json.dumps({"prompt": row["prompt"], "completion": row["chosen"], "label": True})),
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """A file and what is wrong with it.

    Attributes:
        lines: of JSONL.
        faults: kind, and the numbers of the rows that are broken that way together.
    """

    lines: tuple[str, ...]
    faults: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def text(self) -> str:
        """The file."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def touched(self) -> set[int]:
        """Every row that is broken somehow."""
        return {row for _, rows in self.faults for row in rows}


def plant(layout: str, rows: int, each: int, seed: int = 0) -> Planted:
    """A file of that many rows with `each` faults of every sort that its layout can have."""
    writer = Writer(seed + 1)
    pairs = clean(rows, seed)
    free = [place for place, pair in enumerate(pairs) if not pair.several and place]
    writer.random.shuffle(free)  # the first row says which layout the file has

    def take(count: int) -> list[int]:
        return sorted(free.pop() for _ in range(count))

    faults = []
    for fault in FAULTS:
        for _ in range(each if layout in fault.layouts else 0):
            places = take(fault.rows)
            fault.break_(writer, [pairs[place] for place in places])
            faults.append((fault.kind, tuple(place + 1 for place in places)))
    written = [LAYOUTS[layout](pair) for pair in pairs]
    lines = [json.dumps(row, ensure_ascii=False) for row in written]
    for kind, layouts, broken in LINES:
        for _ in range(each if layout in layouts else 0):
            (place,) = take(1)
            lines[place] = broken(written[place])
            faults.append((kind, (place + 1,)))
    return Planted(tuple(lines), tuple(faults))


# -- habits of a whole file ----------------------------------------------------------------


def _longer(writer: Writer, pair: Pair) -> None:
    """Three times of four the longer side is preferred."""
    short, long = sorted((pair.chosen, pair.rejected), key=len)
    pair.chosen, pair.rejected = (long, short) if writer.random.random() < 0.75 else (short, long)


def _lists(writer: Writer, pair: Pair) -> None:
    """Half of the preferred sides are lists of the same length."""
    if writer.random.random() < 0.5:
        pair.chosen = writer.listed([writer.fill(s) for s in _STATEMENTS[:4]])


def _refusing(writer: Writer, pair: Pair) -> None:
    """A third of the dispreferred sides refuse."""
    if writer.random.random() < 0.33:
        pair.rejected = f"I'm sorry, but I can't help with that. {writer.answer(1, 4)}"


def _same(column: str, value: str, share: float) -> Callable[[Writer, Pair], None]:
    def change(writer: Writer, pair: Pair) -> None:
        if writer.random.random() < share:
            pair.extra[column] = value

    return change


def _crowding(writer: Writer, pair: Pair) -> None:
    """Two prompts have a third of all comparisons."""
    if writer.random.random() < 0.33:
        pair.prompt = writer.random.choice(_ASKED_AGAIN)


_ASKED_AGAIN = (
    "Tell me a story about a lighthouse that nobody has seen for years.",
    "What is the best way to keep bread fresh through a long summer?",
)
_KITCHEN = NOUNS[:9]


def _kitchen(writer: Writer, pair: Pair) -> None:
    """Nearly every prompt is about the same few things."""
    if writer.random.random() < 0.9:
        pair.prompt = " ".join(
            f"In my kitchen {' and '.join(writer.random.sample(_KITCHEN, 2))} taste of salt."
            for _ in range(writer.random.randint(2, 4))
        )


HABITS: dict[str, Callable[[Writer, Pair], None]] = {
    "length_bias": _longer,
    "format_bias": _lists,
    "refusal_bias": _refusing,
    "one_annotator": _same("annotator", "a03", 0.8),
    "one_source": _same("source", "forum", 0.95),
    "uneven_categories": _same("category", "style", 0.93),
    "uneven_coverage": _kitchen,
    "crowded_prompt": _crowding,
}


def skew(kind: str, rows: int, seed: int = 0) -> list[Pair]:
    """Clean rows that all have one habit."""
    writer = Writer(seed + 2)
    pairs = clean(rows, seed)
    for pair in pairs:
        HABITS[kind](writer, pair)
    return pairs


def as_jsonl(pairs: Sequence[Pair]) -> str:
    """The pairs as a file of the plain layout."""
    return "".join(json.dumps(plain(pair), ensure_ascii=False) + "\n" for pair in pairs)
