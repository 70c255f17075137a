"""Translates what a user types into a search box into a tsquery that matches schema.sql's asr_words()."""

from __future__ import annotations

import re

from asrserver.text.unicode_ranges import SEARCHED_BY_SIGN as SIGNS

_TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')
_RUNS = re.compile(f"[{SIGNS}]+|[^{SIGNS}]+")
_PUNCTUATION = re.compile("[\u2000-\u206f\u3000-\u3004\u3008-\u303f\uff00-\uff0f\uff1a-\uff20]")


def tsquery(text: str) -> str:
    """Translate a search into the argument of to_tsquery('simple', …).

    All words must match; "…" is a phrase, -word excludes, or separates alternatives. Words are always quoted, so that
    no text causes a syntax error.

    Returns:
        The tsquery; empty if there is nothing to search for.
    """
    alternatives: list[list[str]] = [[]]
    for minus, phrase, word in _TERM.findall(text):
        if word.lower() == "or" and not minus:
            alternatives.append([])
        elif term := _term(phrase or word):
            alternatives[-1].append(f"!({term})" if minus else term)
    return " | ".join(f"({' & '.join(terms)})" for terms in alternatives if terms)


def _term(text: str) -> str:
    runs = _RUNS.findall(_PUNCTUATION.sub(" ", text))
    words = [word for run in runs if any(map(str.isalnum, run)) or re.match(f"[{SIGNS}]", run) for word in _words(run)]
    return " & ".join("'{}'".format(word.replace("\\", "\\\\").replace("'", "''")) for word in words)


def _words(run: str) -> list[str]:
    if len(run) > 1 and re.match(f"[{SIGNS}]", run):
        return list(dict.fromkeys(run[i : i + 2] for i in range(len(run) - 1)))
    return [run]
