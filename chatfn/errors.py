"""Failures as data: the error map, and the one exception that carries it.

The categories are those of Cognitect's anomalies; which status belongs to which is one table and one pure function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyrsistent import PMap, pmap

from chatfn.spec import Category, Classify, Error, Response

BY_STATUS: dict[int, Category] = {
    401: "forbidden",
    403: "forbidden",
    404: "not_found",
    405: "unsupported",
    408: "interrupted",
    409: "conflict",
    429: "busy",
    501: "unsupported",
    502: "unavailable",
    503: "busy",
    504: "unavailable",
}
CATEGORIES: PMap[int, Category] = pmap(BY_STATUS)
RETRYABLE: frozenset[Category] = frozenset({"unavailable", "interrupted", "busy", "fault", "conflict"})

MESSAGE_CHARACTERS = 2_000
EXCERPT_CHARACTERS = 500
REQUEST_IDS = ("x-request-id", "apim-request-id", "x-ms-request-id")
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
FOREVER = 1e15  # seconds: finite, whatever a server asks for
STATUS = re.compile(r"[45][0-9]{2}")
DEEPEST_WORDS = 20
MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
HTML_START = re.compile(r"\s*<(!doctype|html|head|body|\?xml|h1|p|title)\b", re.IGNORECASE)


class ChatError(Exception):
    """A failed call; ``error`` is its error map.

    >>> raise ChatError({"category": "busy", "message": "slow down", "status": 429})
    Traceback (most recent call last):
    chatfn.errors.ChatError: busy (429): slow down
    """

    def __init__(self, error: Error) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        status = f" ({self.error['status']})" if self.error.get("status") else ""
        return f"{self.error['category']}{status}: {self.error['message']}"


def category_of(status: int, wire: Mapping[str, Any]) -> Category:
    """The category of a failed response from its status and the ``type`` and ``code`` of its body.

    >>> category_of(429, {}), category_of(429, {"code": "insufficient_quota"}), category_of(200, {"code": 503})
    ('busy', 'forbidden', 'busy')
    """
    code = wire.get("code")
    if "insufficient_quota" in (code, wire.get("type")):
        return "forbidden"
    if status < 300:  # a success that is no answer; some gateways put the real status into its body
        real = isinstance(code, (int, str)) and STATUS.fullmatch(str(code))
        return category_of(int(real[0]), {}) if real else "fault"
    return CATEGORIES.get(status, "incorrect" if status < 500 else "fault")


def failure(category: Category, message: str) -> Response:
    """The response map of a request that got no response.

    >>> failure("unavailable", "connection refused")["error"]
    {'category': 'unavailable', 'message': 'connection refused', 'status': 0}
    """
    return {
        "status": 0,
        "headers": {},
        "body": None,
        "error": {"category": category, "message": message[:MESSAGE_CHARACTERS], "status": 0},
    }


def unsent(category: Category, message: str) -> Response:
    """The response map of a request that was not sent.

    >>> unsent("forbidden", "no key")["attempts"]
    0
    """
    return {**failure(category, message), "attempts": 0}


def error_map(
    status: int, headers: Mapping[str, str], body: Any, classify: Classify = category_of, now: float = 0.0
) -> Error:
    """The error map of a response that is no answer; ``body`` is its data, or its text.

    ``now``: seconds since the epoch, for a ``retry-after`` that is a date.
    Source: https://developers.openai.com/api/docs/guides/error-codes

    >>> error_map(404, {"x-request-id": "r1"}, {"error": {"message": "no such model", "code": "model_not_found"}})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'category': 'not_found', 'message': 'no such model', 'status': 404, 'type': None, 'code': 'model_not_found',
     'param': None, 'body': {'error': {'message': 'no such model', 'code': 'model_not_found'}}, 'request_id': 'r1'}
    """
    wire = wire_error(body)
    known = {key: plain_member(wire.get(key)) for key in ("type", "code", "param")}
    error: dict[str, Any] = {
        "category": classify(status, wire),
        "message": words_of(body)[:MESSAGE_CHARACTERS] or f"HTTP status {status} without a word",
        "status": status,
        **known,
    }
    if isinstance(body, (dict, list)):
        error["body"] = body
    wait = retry_after_of(headers, now)
    if wait is not None:
        error["retry_after"] = wait
    if headers.get("x-should-retry", "").lower() in ("true", "false"):
        error["should_retry"] = headers["x-should-retry"].lower() == "true"
    request_id = request_id_of(headers)
    if request_id is not None:
        error["request_id"] = request_id
    found: Error = error  # type: ignore[assignment]  # built key by key
    return found


def wire_error(body: Any) -> Mapping[str, Any]:
    """The map in a body that says what went wrong, in the forms that servers give it."""
    while isinstance(body, list) and body:  # Gemini's OpenAI endpoint wraps the map in a list
        body = body[0]
    if not isinstance(body, dict):
        return {}
    return body["error"] if isinstance(body.get("error"), dict) else body


def plain_member(value: Any) -> str | int | None:
    return value if value is None or isinstance(value, (str, int)) else str(value)[:EXCERPT_CHARACTERS]


def words_of(body: Any, depth: int = 0) -> str:
    """The server's words, whatever form they came in: OpenAI's, FastAPI's, plain text, HTML.

    >>> words_of({"detail": [{"loc": ["body"], "msg": "field required"}]}), words_of("<h1>Bad&nbsp;Gateway</h1>")
    ('field required', 'Bad Gateway')
    """
    if isinstance(body, str):
        return text_of_html(body) if HTML_START.match(body) else body.strip()
    if depth >= DEEPEST_WORDS:
        return ""
    if isinstance(body, list):
        return "; ".join(filter(None, (words_of(item, depth + 1) for item in body)))
    if isinstance(body, dict):
        for key in ("error", "message", "msg", "detail", "errors", "Message", "title"):
            words = words_of(body.get(key), depth + 1)
            if words:
                return words
        return ", ".join(f"{key}: {value}" for key, value in body.items() if isinstance(value, (str, int)))
    return ""


def text_of_html(page: str) -> str:
    import html  # at its first use: rarely needed, and slow to import

    return " ".join(html.unescape(MARKUP.sub(" ", page[:8_192])).split())


def retry_after_of(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks to wait, or None: finite and not negative, whatever it sends.

    >>> retry_after_of({"retry-after-ms": "250"}, 0), retry_after_of({"retry-after": "-1"}, 0)
    (0.25, None)
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if NUMBER.fullmatch(headers.get(name, "")):
            return min(float(headers[name]) / 1000, FOREVER)
    value = headers.get("retry-after", "").strip()
    if NUMBER.fullmatch(value):
        return min(float(value), FOREVER)
    due = epoch_of(value)
    if due is None:
        return None
    sent = epoch_of(headers.get("date", ""))
    return max(0.0, due - (now if sent is None else sent))


def epoch_of(date: str) -> float | None:
    """An HTTP date, which is in UTC if it does not say, in seconds since the epoch, or None if it is none."""
    if not date:
        return None
    from datetime import UTC  # at their first use: rarely needed, and slow to import
    from email.utils import parsedate_to_datetime

    try:
        when = parsedate_to_datetime(date)
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The id under which the server knows the request, or None."""
    for name in REQUEST_IDS:
        if headers.get(name):
            return headers[name]
    return None
