"""A string that a regular expression matches, without a search: one walk over the pattern, always the first way.

Groups, alternatives, classes, escapes and quantifiers are followed; what a look-around or a back reference demands
is not, so the caller checks the result.
"""

from __future__ import annotations

import re
import string

POOL = string.ascii_lowercase + string.digits + string.ascii_uppercase + string.punctuation + " \t\n\r\f\v\0éλя中"
QUANTIFIER = re.compile(r"(?:([*+?])|\{([0-9]{1,6})(,?)([0-9]{0,6})\})[?+]?")
OPENING = re.compile(r"\((?:\?(?:P?<\w+>|[a-zA-Z-]*:))?")
LOOKAROUND = re.compile(r"\(\?<?[=!]")
CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|.)", re.DOTALL)
LONGEST = 10_000


def sample_of(pattern: str, extra: int = 0) -> str:
    """A short string for ``pattern``, each open-ended repetition ``extra`` times longer than it must be.

    ValueError: it would have more than 10,000 characters.

    >>> sample_of("^[A-Z]{2}-(x|y)+[0-9]{3}$"), sample_of("^a+b*$", extra=2)
    ('AA-x000', 'aaabb')
    """
    return alternatives(pattern, 0, extra)[0]


def alternatives(pattern: str, at: int, extra: int) -> tuple[str, int]:
    """The first alternative from ``at`` on, and where the last of them ends."""
    text, at = sequence(pattern, at, extra)
    while at < len(pattern) and pattern[at] == "|":
        at = sequence(pattern, at + 1, extra)[1]
    return text, at


def sequence(pattern: str, at: int, extra: int) -> tuple[str, int]:
    pieces: list[str] = []
    length = 0
    while at < len(pattern) and pattern[at] not in "|)":
        piece, at = atom(pattern, at, extra)
        found = QUANTIFIER.match(pattern, at)
        times = 1 if found is None else times_of(found, extra)
        length += len(piece) * times
        if length > LONGEST:
            raise ValueError(f"a match of the pattern has more than {LONGEST} characters")
        pieces.append(piece * times)
        at = at if found is None else found.end()
    return "".join(pieces), at


def atom(pattern: str, at: int, extra: int) -> tuple[str, int]:
    if pattern[at] == "(":
        around = LOOKAROUND.match(pattern, at)
        opening = around or OPENING.match(pattern, at)
        text, end = alternatives(pattern, opening.end() if opening else at + 1, extra)
        return "" if around else text, end + 1
    for form in (CLASS, ESCAPE):
        found = form.match(pattern, at)
        if found is not None:
            return character(found), found.end()
    return {"^": "", "$": "", ".": "a"}.get(pattern[at], pattern[at]), at + 1


def character(found: re.Match[str]) -> str:
    """One character for a class or an escape; none for what has no width, or is half a pair."""
    code = "".join(filter(None, found.groups()))
    if code:
        return "" if 0xD800 <= int(code, 16) < 0xE000 else chr(int(code, 16))
    return next((one for one in POOL if re.fullmatch(found[0], one)), "")


def times_of(found: re.Match[str], extra: int) -> int:
    sign, least, comma, most = found.groups()
    low = int(least or 0) if sign is None else int(sign == "+")
    high = {"?": 1}.get(sign) if sign else int(most) if most else None if comma else low
    return low + extra if high is None else min(low + extra, high)
