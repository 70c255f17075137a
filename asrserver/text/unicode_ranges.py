"""Unicode ranges of scripts that put no spaces between words, as the inside of a regular expression's character class.

schema.sql has the ranges of SEARCHED_BY_SIGN once more, for PostgreSQL; a test holds the two against each other.
"""

from __future__ import annotations

#: Scripts whose texts have no spaces between words: Thai, Lao and Tibetan; Burmese; Khmer; Han, its radicals and its
#: iteration marks; kana and bopomofo, their extensions, and halfwidth kana.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)

#: Hangul. Korean has spaces, but its particles are written onto their words.
HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc"

#: The signs by which a full-text search looks for words, instead of by spaces.
SEARCHED_BY_SIGN = UNSPACED + HANGUL
