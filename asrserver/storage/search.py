"""Translates what a user types into a search box into a tsquery that matches schema.sql's asr_words()."""

from __future__ import annotations

import re

from asrserver.text.unicode_ranges import SEARCHED_BY_SIGN as SIGNS

_TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')
_RUNS = re.compile(f"[{SIGNS}]+|[^{SIGNS}]+")
_PUNCTUATION = re.compile("[\u2000-\u206f\u3000-\u3004\u3008-\u303f\uff00-\uff0f\uff1a-\uff20]")


#: What may stand between two words of a phrase: what the parser passes over, tags and entities among it.
_GAP = r"([^[:alnum:]]|<[^>]*>|&[#[:alnum:]]+;)+"


def tsquery(text: str) -> str:
    """Translate a search into the argument of to_tsquery('simple', …).

    All words must match; "…" is a phrase, -word excludes, or separates alternatives. Words are always quoted, so that
    no text causes a syntax error.

    Returns:
        The tsquery; empty if there is nothing to search for.
    """
    alternatives = [[f"!({term})" if excluded else term for excluded, _, term in each] for each in _parsed(text)]
    return " | ".join(f"({' & '.join(terms)})" for terms in alternatives)


def required(text: str) -> str:
    """The same without what is excluded, which every match has; empty if one may have nothing of it."""
    alternatives = [[term for excluded, _, term in each if not excluded] for each in _parsed(text)]
    return " | ".join(f"({' & '.join(terms)})" for terms in alternatives) if all(alternatives) else ""


def pattern(text: str) -> str:
    """A regular expression of PostgreSQL that every match has in its text, and few others; empty if there is no such.

    To look for the longest phrase in this way takes a tenth of the time of parsing a text. Only for words that Python
    and every locale take for words.
    """
    alternatives, best = _parsed(text), list[str]()
    for excluded, phrase, _ in alternatives[0] if len(alternatives) == 1 else ():
        words = [word for word in re.split(r"[\x00-/:-@[-`{-\x7f]+", phrase) if word]
        if not excluded and len(words) > max(1, len(best)):
            best = words
    usable = all(map(str.isalnum, best)) and not re.search(f"[{SIGNS}]", "".join(best))
    return _GAP.join(best) if usable else ""


def _parsed(text: str) -> list[list[tuple[bool, str, str]]]:
    """The alternatives of a search: whether each of their words or phrases is excluded, as typed, and as a tsquery."""
    alternatives: list[list[tuple[bool, str, str]]] = [[]]
    for minus, phrase, word in _TERM.findall(text):
        if word.lower() == "or" and not minus:
            alternatives.append([])
        elif term := _term(phrase or word):
            alternatives[-1].append((bool(minus), phrase or word, term))
    return [terms for terms in alternatives if terms]


def _term(text: str) -> str:
    runs = _RUNS.findall(_PUNCTUATION.sub(" ", text))
    words = [word for run in runs if any(map(str.isalnum, run)) or re.match(f"[{SIGNS}]", run) for word in _words(run)]
    return " & ".join("'{}'".format(word.replace("\\", "\\\\").replace("'", "''")) for word in words)


def _words(run: str) -> list[str]:
    if len(run) > 1 and re.match(f"[{SIGNS}]", run):
        return list(dict.fromkeys(run[i : i + 2] for i in range(len(run) - 1)))
    return [run]
