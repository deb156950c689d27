"""What a completion looks like: a list, headings, bold, code; a refusal or an apology.

Called for every completion that streams by, so that cheap tests of substrings come before any
pattern. Refusals and apologies are known by set phrases of English at the beginning of the text:
what is declined in other words, later, or in another language, is not seen.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from prefopt.data.checking.facts import APOLOGY, BOLD, CODE, HEADING, LIST, REFUSAL

#: bit → what it means, in words that fit after "completions with"
NAMES = MappingProxyType(
    {
        LIST: "a list",
        HEADING: "headings",
        BOLD: "bold text",
        CODE: "code",
        REFUSAL: "a refusal",
        APOLOGY: "an apology",
    }
)

_HEAD = 200  # characters in which a refusal or an apology is looked for
_FENCE = re.compile(r"(?:^|\n)[ \t]*```.*?(?:\n[ \t]*```|\Z)", re.DOTALL)
_ITEM = r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S"
_FIRST_ITEM, _NEXT_ITEM = re.compile(_ITEM), re.compile(r"\n" + _ITEM)
_TITLE = r" {0,3}#{1,6}[ \t]+\S"
_FIRST_HEADING, _NEXT_HEADING = re.compile(_TITLE), re.compile(r"\n" + _TITLE)
_BOLD = re.compile(r"\*\*(?=[^\s*])[^*\n]*[^\s*]\*\*")
_INLINE_CODE = re.compile(r"`[^`\n]+`")

_VERBS = (
    "advise|answer|assist|comply|condone|continue|create|discuss|do|encourage|engage|endorse|"
    "explain|fulfil|fulfill|generate|give|help|offer|participate|produce|promote|provide|"
    "recommend|respond|say|share|suggest|support|teach|tell|write"
)
_REFUSAL = re.compile(
    rf"\b(?:i|we)(?: really| just| simply)? (?:can't|cannot|can not|won't|will not|could not|"
    rf"couldn't|must not|shouldn't|should not|don't want to|would not|wouldn't)"
    rf"(?: really| just| simply| in good conscience| ethically)? (?:{_VERBS})\b"
    rf"|\bi(?:'m| am)(?: really| just)? (?:unable|not able|not going|not willing|not allowed|"
    rf"not permitted|not programmed|not designed) to\b"
    r"|\bi(?:'m| am)? (?:not|don't feel|do not feel) comfortable\b"
    r"|\bi (?:must|have to|will|would have to)? ?(?:respectfully )?(?:decline|refuse)\b"
    r"|\bas an? (?:ai|artificial intelligence|language model)\b[^.]*\b(?:not|cannot|unable|n't)"
    r"|\bi(?:'m| am) sorry,? but i (?:can|do|am|will)(?: not|not|n't)\b"
)
_SORRY = r"sorry\b(?! (?:to hear|for your|about your|(?:that )?you))"
_APOLOGY = re.compile(
    rf"\b(?:i'm|i am|we're|we are) (?:(?:so|very|really|truly|deeply|terribly) )*{_SORRY}"
    rf"|(?:^|[.!?] )\W*(?:(?:so|very) )?{_SORRY}"
    r"|\b(?:i|we) (?:(?:do|must|sincerely|deeply|really) )*apologi[sz]e\b"
    r"|\b(?:my|our)(?: sincere| deepest)? apologies\b|^\W*apologies\b"
)


def marks(text: str) -> int:
    """The bits of `Facts.preferred_marks` for one completion.

    A list has at least two items. Inside a block of code nothing else is marked.

    >>> marks("Sure:\\n- one\\n- two") == LIST, marks("**No.**") == BOLD, marks("2 ** 3") == 0
    (True, True, True)
    >>> marks("I'm sorry, but I can't help with that.") == REFUSAL | APOLOGY
    True
    """
    found = 0
    if "`" in text:
        if "```" in text:
            found = CODE
            text = _FENCE.sub("\n", text)
        elif _INLINE_CODE.search(text):
            found = CODE
    if "\n" in text and _is_list(text):
        found |= LIST
    if "# " in text and (_NEXT_HEADING.search(text) or _FIRST_HEADING.match(text)):
        found |= HEADING
    if "**" in text and _BOLD.search(text):
        found |= BOLD
    return found | _of_beginning(text[:_HEAD].lower())


def _is_list(text: str) -> bool:
    item = _NEXT_ITEM.search(text)
    if item is None:
        return False
    return _NEXT_ITEM.search(text, item.end()) is not None or _FIRST_ITEM.match(text) is not None


def _of_beginning(head: str) -> int:
    if "’" in head:
        head = head.replace("’", "'")
    sorry = "sorry" in head or "apolog" in head
    if not sorry and not _may_refuse(head):
        return 0
    head = " ".join(head.split())
    found = REFUSAL if _REFUSAL.search(head) else 0
    return found | (APOLOGY if sorry and _APOLOGY.search(head) else 0)


def _may_refuse(head: str) -> bool:
    """Whether words are there without which `_REFUSAL` cannot match; few texts have them."""
    if "n't" in head and ("can't " in head or "won't " in head or "uldn't " in head):
        return True
    if "not " in head and (
        "cannot " in head
        or "can not " in head
        or "will not " in head
        or "uld not " in head
        or "m not " in head
        or "must not " in head
    ):
        return True
    if "unable to" in head or "decline" in head or "refuse" in head:
        return True
    return ("n't" in head or "not " in head) and (
        " an ai" in head
        or "language model" in head
        or "artificial" in head
        or "t feel comfort" in head
        or "don't want to" in head
    )
