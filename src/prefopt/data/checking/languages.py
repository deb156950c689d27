"""Whether an answer is in another language than its prompt: by script, and by small words.

Cheap and cautious: what is short, mixed, or not among the languages of the table is taken to be
right, and so is every answer to a prompt that speaks of a language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_READ = 400  # characters of a text that are looked at
_LEAST_LETTERS = 12  # of the script a text is in; a Chinese character counts as three
_LEAST_WORDS = 3  # small words of the language a text is in
_MOST = 0.7  # share of the letters that are of the script a text is in

#: where the letters of a script begin and end
_RANGES = (
    ("latin", 0x41, 0x5A), ("latin", 0x61, 0x7A), ("latin", 0xC0, 0x24F), ("greek", 0x370, 0x3FF),
    ("cyrillic", 0x400, 0x52F), ("armenian", 0x530, 0x58F), ("hebrew", 0x590, 0x5FF),
    ("arabic", 0x600, 0x6FF), ("arabic", 0x750, 0x77F), ("devanagari", 0x900, 0x97F),
    ("bengali", 0x980, 0x9FF), ("gurmukhi", 0xA00, 0xA7F), ("gujarati", 0xA80, 0xAFF),
    ("tamil", 0xB80, 0xBFF), ("telugu", 0xC00, 0xC7F), ("kannada", 0xC80, 0xCFF),
    ("malayalam", 0xD00, 0xD7F), ("sinhala", 0xD80, 0xDFF), ("thai", 0xE00, 0xE7F),
    ("lao", 0xE80, 0xEFF), ("tibetan", 0xF00, 0xFFF), ("burmese", 0x1000, 0x109F),
    ("georgian", 0x10A0, 0x10FF), ("korean", 0x1100, 0x11FF), ("ethiopic", 0x1200, 0x137F),
    ("khmer", 0x1780, 0x17FF), ("latin", 0x1E00, 0x1EFF), ("greek", 0x1F00, 0x1FFF),
    ("chinese", 0x3040, 0x30FF), ("chinese", 0x3400, 0x9FFF), ("korean", 0xAC00, 0xD7AF),
    ("chinese", 0xF900, 0xFAFF), ("chinese", 0x20000, 0x3FFFF),
)  # fmt: skip
_SCRIPTS = sorted({name for name, *_ in _RANGES})
_STARTS = np.array([start for _, start, _ in _RANGES], dtype=np.uint32)
_ENDS = np.array([end for *_, end in _RANGES], dtype=np.uint32)
_CODES = np.array([_SCRIPTS.index(name) for name, *_ in _RANGES])
_CHARACTERS = {"chinese": 3}  # one of them says as much as so many letters

_WORDS = {
    "english": "the and of to is in that it you for with are this was have not what how can my "
    "your i be on they from which there when who if would do about an as has",
    "german": "der die das und ist nicht ein eine einen mit für auf ich du sie wir zu den dem von "
    "im als auch wie was warum wenn dass mein meine mir dir dann hat man nur bis bei aber oder "
    "ohne es am aus doch so hilft kann",
    "spanish": "el la los las de que y en un una es por con para no se lo al del mi su como qué "
    "pero más cuando si hasta sin ya te muy también le puedes cómo",
    "french": "le la les de des et en un une est pour que qui dans pas il elle je vous nous avec "
    "sur au du ce cette ne plus mais ou où comment pourquoi sont se mon ma",
    "italian": "il lo la gli le di che e un una è per con non si del della sono come ma anche più "
    "mi questo perché nel alla dei",
    "portuguese": "o a os as de que e em um uma é por com para não se do da no na mais como mas "
    "ao você seu sua meu são dos das pelo",
    "dutch": "de het een en van ik je niet is dat op te zijn met voor er maar aan ook als hoe wat "
    "deze naar dan bij om",
    "swedish": "och att det som en är på för av med inte jag har ett den till om men hur vad du "
    "kan från eller",
    "polish": "i w nie na się z do to jest że jak co ale po czy za od dla są jego tym",
    "turkish": "ve bir bu için ile ne da de mi çok gibi ama daha ben nasıl olarak değil var",
    "indonesian": "yang dan di dengan untuk tidak ini itu dari ke adalah akan pada saya anda bisa "
    "atau juga dalam",
}
_LANGUAGES = tuple(_WORDS)
_SAYS: dict[str, tuple[int, ...]] = {}
for _index, _words in enumerate(_WORDS.values()):
    for _word in _words.split():
        _SAYS[_word] = (*_SAYS.get(_word, ()), _index)

#: bytes with which UTF-8 begins letters that are not Latin, and few other signs
_FOREIGN = bytes([*range(0xCD, 0xE2), *range(0xE3, 0xEE), 0xF0])

_WORD = re.compile(r"[^\W\d_]+")
#: a prompt that may well want another language than its own
_ASKED = re.compile(
    r"translat|language|dialect|übersetz|traduc|tradui|перевед|翻译|翻訳|번역"
    r"|\b(?:english|german|spanish|french|italian|portuguese|dutch|swedish|polish|turkish|"
    r"russian|ukrainian|greek|hebrew|arabic|persian|hindi|bengali|tamil|urdu|thai|vietnamese|"
    r"indonesian|chinese|mandarin|cantonese|japanese|korean|latin|sanskrit|deutsch|español|"
    r"français|englisch|inglés|anglais)\b|英文|英語|中文|日本語",
    re.IGNORECASE,
)


def mismatches(prompt: str, answers: Sequence[str]) -> list[bool]:
    """Of each answer whether it and the prompt are clearly in a language, and not the same one.

    >>> mismatches("What is the capital of France?", ["Paris.", "Столица Франции — это Париж."])
    [False, True]
    >>> mismatches("What is the capital of France, in Russian?", ["Столица Франции — это Париж."])
    [False]
    """
    english = _is_english(prompt)
    found = [False] * len(answers)
    asked: str | None = None if not english else "english"
    for place, answer in enumerate(answers):
        if english and _is_english(answer):
            continue
        if asked is None:
            asked = language(prompt[-_READ:])
            if asked is None:
                return found
        said = language(answer)
        differ = said is not None and said != asked and "```" not in answer
        found[place] = differ and not _ASKED.search(prompt)
    return found


def language(text: str) -> str | None:
    """A language of the table, another script's name, or None if neither is clear.

    >>> language("Warum ist der Himmel blau, und was ist mit dem Meer?")
    'german'
    >>> language("Почему небо голубое?"), language("Aha!")
    ('cyrillic', None)
    """
    text = text[:_READ]
    if not text.isascii():
        raw = text.encode("utf-8", "surrogatepass")
        if len(raw.translate(None, _FOREIGN)) < len(raw) and (script := _script(text)) != "latin":
            return script
    words = _WORD.findall(text.lower())
    small = [_SAYS[word] for word in words if word in _SAYS]
    if len(small) < _LEAST_WORDS:
        return None
    counts = [0] * len(_LANGUAGES)
    for said_in in small:
        for index in said_in:
            counts[index] += 1
    best = max(counts)
    second = sorted(counts)[-2]
    if best < _LEAST_WORDS or best < 0.15 * len(words) or best < 1.3 * second + 1:
        return None
    return _LANGUAGES[counts.index(best)]


def _script(text: str) -> str | None:
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    place = np.searchsorted(_STARTS, letters, "right") - 1
    inside = (place >= 0) & (letters <= _ENDS[place])
    counts = np.bincount(_CODES[place[inside]], minlength=len(_SCRIPTS))
    for name, times in _CHARACTERS.items():
        counts[_SCRIPTS.index(name)] *= times
    best = int(counts.argmax())
    if counts[best] < _LEAST_LETTERS or counts[best] < _MOST * counts.sum():
        return None
    return _SCRIPTS[best]


def _is_english(text: str) -> bool:
    """Whether it has a small word that is none in the other languages of the table."""
    return (
        " the " in text
        or " to " in text
        or " you " in text
        or " and " in text
        or " I " in text
        or " my " in text
        or " what " in text
        or " how " in text
        or "What " in text
        or "How " in text
    )
