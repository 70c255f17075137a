"""Mandarin numerals: 二十五 is 25.

No library that does it could be taken: cn2an installs folders named `build` and `src` beside all packages;
WeTextProcessing writes 十分感谢 ("many thanks") as 10分感谢, and units as symbols, and takes 45 MB.

What is no number stays: single signs (一些, 三明治, 十分), two digits in a row (三五个: three to five), and idioms
(万一, 千万, 三三两两).
"""

from __future__ import annotations

import re

from asrserver.text.edits import TextEdit, TextEdits

_DIGITS = {sign: value for value, sign in enumerate("零一二三四五六七八九")}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_LARGE = (("亿", 10**8), ("万", 10**4))

#: Other forms of the signs.
_PLAIN = str.maketrans("〇兩萬億點", "零两万亿点")

#: Digits that are read one by one: years, numbers of telephones and rooms. 幺 is 1 there.
_ROW = re.compile("[零一二三四五六七八九幺]+")
_VALUES = str.maketrans("零一二三四五六七八九幺", "01234567891")

#: Digits in a row that are a number at least: two may be an estimate.
MIN_ROW = 3

#: A run of numerals, perhaps a percentage; and what may become one, at the end of a text that grows. A fraction
#: (三分之二) begins like a number.
_SIGNS = "零〇一二两兩三四五六七八九十百千万萬亿億点點幺"
_RUN = re.compile(f"(百分之)?([{_SIGNS}]+)")
_OPEN = re.compile(f"(?:百分之[{_SIGNS}]*|[{_SIGNS}]+)(?:分之?)?$")


def edits(text: str) -> TextEdits:
    """What is to be changed in a text so that its numerals are digits."""
    found: list[TextEdit] = []
    for run in _RUN.finditer(text):
        if text.startswith("分之", run.end()) or (not run[1] and text.endswith("分之", 0, run.start())):
            continue
        if run[1]:
            number = _decimal(run[2]) or _digits(run[2], single=True)
            found += [TextEdit(*run.span(), f"{number}%")] if number else []
        elif (number := _decimal(run[2])) and not text.startswith("刻", run.end()):
            found.append(TextEdit(*run.span(), number))
        else:  # a time of day
            for part in re.finditer("[^点點]+", run[2]):
                if number := _digits(part[0]):
                    found.append(TextEdit(run.start() + part.start(), run.start() + part.end(), number))
    growing = _OPEN.search(text)
    return TextEdits(found, growing.start() if growing else len(text))


def _decimal(run: str) -> str | None:
    """三点一四."""
    whole, point, fraction = run.translate(_PLAIN).partition("点")
    before = _digits(whole, single=True) if whole else None
    if not point or before is None or not _ROW.fullmatch(fraction):
        return None
    return f"{before}.{fraction.translate(_VALUES)}"


def _digits(run: str, single: bool = False) -> str | None:
    """The digits of a run without a point; None: it is no number. `single`: one sign is a number too."""
    run = run.translate(_PLAIN)
    if len(run) == 1 and not single:
        return None
    if _ROW.fullmatch(run) and len(run) != 1:
        return run.translate(_VALUES) if len(run) >= MIN_ROW else None
    value = None if run[0] == "零" and len(run) > 1 else _value(run)
    return None if value is None else str(value)


def _value(run: str) -> int | None:
    """The value of a number with units; None: it is none."""
    for unit, weight in _LARGE:
        head, found, tail = run.partition(unit)
        if found:
            high = _value(head) if head else None
            if len(tail) == 1 and tail in _DIGITS and tail != "零":  # 一万五
                low: int | None = _DIGITS[tail] * weight // 10
            else:
                low = _value(tail) if tail else 0
            return None if high is None or low is None or low >= weight else high * weight + low
    return _below_ten_thousand(run)


def _below_ten_thousand(run: str) -> int | None:
    value, last, zero = 0, 10**4, False
    digit: int | None = None
    for sign in run:
        weight = _UNITS.get(sign)
        if weight is None:
            if digit is not None or sign not in (*_DIGITS, "两"):
                return None
            if sign == "零":
                zero = True
            else:
                digit = _DIGITS.get(sign, 2)
        elif weight >= last or (digit is None and sign != "十"):
            return None
        else:
            value += (digit or 1) * weight
            last, zero, digit = weight, False, None
    if digit is not None:
        # 二百五 is 250, and 二百零五 is 205.
        return value + (digit if zero or last in (10, 10**4) else digit * last // 10)
    return None if zero and value else value
