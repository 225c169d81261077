"""The line of those who wait: tickets in the order of their coming.

A ticket knows how many stand before it, and the tokens that they will take, without a look at each of them: both are
what had joined before it less what has left since.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from chatfn.middleware.limit.sizes import Size


class Ticket(NamedTuple):
    number: int
    before: float  # tokens of all who ever joined before
    tokens: float
    size: Size


class Line(NamedTuple):
    head: int = 0  # the first number that may still wait
    next: int = 0
    joined: float = 0.0  # tokens of all who ever joined
    passed: float = 0.0  # tokens of all whose number is below ``head``
    left: tuple[tuple[int, float], ...] = ()  # who left before their turn, by number, with their tokens
    waiting: int = 0
    tokens: float = 0.0  # of those who wait


def ticket_of(line: Line, tokens: float, size: Size) -> Ticket:
    """The ticket of one who comes now."""
    return Ticket(line.next, line.joined, tokens, size)


def joined(line: Line, ticket: Ticket) -> Line:
    waiting, tokens = line.waiting + 1, line.tokens + ticket.tokens
    return Line(line.head, line.next + 1, line.joined + ticket.tokens, line.passed, line.left, waiting, tokens)


def ahead_of(line: Line, ticket: Ticket) -> tuple[int, float]:
    """How many wait before a ticket, and their tokens.

    >>> first = ticket_of(Line(), 10.0, Size(1.0, 9.0, 1))
    >>> second = ticket_of(joined(Line(), first), 5.0, Size(1.0, 4.0, 1))
    >>> ahead_of(joined(joined(Line(), first), second), second)
    (1, 10.0)
    """
    rows, tokens = ticket.number - line.head, ticket.before - line.passed
    if line.left:
        gone = bisect_left(line.left, (ticket.number, 0.0))
        rows, tokens = rows - gone, tokens - sum(amount for _, amount in line.left[:gone])
    return rows, max(0.0, tokens) if rows else 0.0


def without(line: Line, ticket: Ticket) -> Line:
    """The line after one has left it."""
    head, passed, left = line.head, line.passed, line.left
    if ticket.number != head:
        place = bisect_left(left, (ticket.number, 0.0))
        left = (*left[:place], (ticket.number, ticket.tokens), *left[place:])
    else:
        head, passed, over = head + 1, passed + ticket.tokens, 0
        while over < len(left) and left[over][0] == head:
            head, passed, over = head + 1, passed + left[over][1], over + 1
        left = left[over:] if over else left
    waiting = line.waiting - 1
    if waiting == 0:  # nothing is left over of the sums' rounding
        return Line(line.next, line.next, 0.0, 0.0, (), 0, 0.0)
    return Line(head, line.next, line.joined, passed, left, waiting, line.tokens - ticket.tokens)
