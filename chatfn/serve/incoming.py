"""The request map of a WSGI request, and what is refused before a handler sees it."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, quote, urlencode

from chatfn.core import parse
from chatfn.errors import ChatError, category_of
from chatfn.options import BOUNDS, CREDENTIAL_HEADERS, DEADLINE, OWN_HEADERS, TIMEOUT
from chatfn.plain import plain
from chatfn.sealing import is_sensitive
from chatfn.secret import Secret
from chatfn.spec import Request

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

Cancelled = Callable[[], bool]
ROUTE = re.compile(r"(?P<root>.*?)(/openai/deployments/(?P<deployment>.+))?/chat/completions", re.DOTALL)
SLASH = re.compile("%2f", re.IGNORECASE)  # cheroot leaves it encoded, other servers do not
HOST = re.compile(r"[A-Za-z0-9._~-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
OTHER_ORIGINS = ("cross-site", "same-site")
PIECE = 65_536


def request_map(
    environ: WSGIEnvironment, key: Secret | None, max_body: int, cancelled: Cancelled | None = None
) -> Request:
    """The request map of a WSGI request; raises the ``ChatError`` of one that is not to be answered."""
    length = length_of(environ, max_body)
    check_client(environ, key)
    path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
    method = environ["REQUEST_METHOD"].upper()
    found = ROUTE.fullmatch(path)
    if found is None:
        raise refusal(404, f"Invalid URL ({method} {path[:200]}): the route is /v1/chat/completions", "unknown_url")
    if method != "POST":
        raise refusal(405, f"Not allowed to {method} on {path[:200]}: use POST", "method_not_supported")
    data = data_of(body_of(environ, length, max_body))
    deployment = SLASH.sub("/", found["deployment"] or "")
    if deployment and data.get("model") is None:
        data = {**data, "model": deployment}
    stream = bool(data.get("stream"))
    room = f"/openai/deployments/{quote(deployment, safe='')}" if deployment else ""
    request: dict[str, Any] = {
        "operation": "create_chat_completion",
        "method": method,
        "url": url_of(environ, f"{quote(found['root'])}{room}/chat/completions"),
        "headers": headers_of(environ),
        "body": data,
        "stream": stream,
        "timeout": TIMEOUT,
        "deadline": None if stream else DEADLINE,
        "bounds": BOUNDS,
    }
    return cast(Request, request if cancelled is None else {**request, "cancelled": cancelled})


def refusal(status: int, message: str, code: str | None = None) -> ChatError:
    return ChatError({"category": category_of(status, {}), "message": message, "status": status, "code": code})


def check_client(environ: WSGIEnvironment, key: Secret | None) -> None:
    """Raise unless the client may call."""
    if key is None:
        if environ.get("HTTP_SEC_FETCH_SITE", "").lower() in OTHER_ORIGINS:
            raise refusal(403, "a web page of another origin may not call a server that has no key")
        return
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    given = [environ.get("HTTP_API_KEY", ""), token.strip() if scheme.lower() == "bearer" else ""]
    wanted = key.reveal().encode()
    if not any(hmac.compare_digest(value.encode("utf-8", "replace"), wanted) for value in given):
        words = "the key is missing or wrong: give it as Authorization: Bearer or api-key"
        raise refusal(401, words, "invalid_api_key")


def length_of(environ: WSGIEnvironment, max_body: int) -> int | None:
    """Bytes of the body, or None if it ends where its stream ends.  First of all: no server may read on for ever."""
    text = environ.get("CONTENT_LENGTH") or ""
    if not text:
        if environ.get("wsgi.input_terminated"):
            return None
        if environ.get("HTTP_TRANSFER_ENCODING"):
            raise refusal(411, "this server needs the header content-length")
        return 0
    if not (text.isascii() and text.isdigit()):
        raise refusal(400, "the header content-length is no number")
    if len(text) > 18 or int(text) > max_body:
        raise too_large(environ, max_body)
    return int(text)


def too_large(environ: WSGIEnvironment, max_body: int) -> ChatError:
    """The refusal of a body; some of it is read, for a client that is still sending would not see the answer."""
    read(environ, max_body, keep=False)
    return refusal(413, f"the body is over the limit of {max_body} bytes")


def body_of(environ: WSGIEnvironment, length: int | None, max_body: int) -> bytes:
    data = read(environ, max_body + 1 if length is None else length)
    if len(data) > max_body:
        raise too_large(environ, max_body)
    if length is not None and len(data) < length:
        raise refusal(400, "the body was cut short")
    return data


def read(environ: WSGIEnvironment, most: int, keep: bool = True) -> bytes:
    """At most so many bytes of the request's body; without ``keep`` they are dropped."""
    pieces, left = [], most
    try:
        while left > 0 and (piece := environ["wsgi.input"].read(min(left, PIECE))):
            left -= len(piece)
            pieces += [piece] if keep else []
        return b"".join(pieces)
    except (OSError, ValueError) as exc:  # servers raise ValueError for broken chunks
        status = 408 if isinstance(exc, TimeoutError) else 400
    raise refusal(status, "the body did not arrive")


def data_of(body: bytes) -> dict[str, Any]:
    try:
        data = plain(parse(body))
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
    except ValueError as exc:
        problem = str(exc)
    else:
        if isinstance(data, dict):
            return data
        problem = f"it is {type(data).__name__}"
    raise refusal(400, f"We could not parse the JSON body of your request: it must be one JSON object; {problem}")


def url_of(environ: WSGIEnvironment, path: str) -> str:
    """The absolute URL, without what in its query may be a credential."""
    default = f"{environ.get('SERVER_NAME', 'localhost')}:{environ.get('SERVER_PORT', '80')}"
    host = environ.get("HTTP_HOST", "")
    root = quote(environ.get("SCRIPT_NAME", ""), encoding="latin-1")
    pairs = parse_qsl(environ.get("QUERY_STRING", "")[:PIECE], keep_blank_values=True)
    query = urlencode([pair for pair in pairs if not is_sensitive(pair[0])])
    origin = f"{environ['wsgi.url_scheme']}://{host if HOST.fullmatch(host) else default}"
    return f"{origin}{root}{path}" + (f"?{query}" if query else "")


def headers_of(environ: WSGIEnvironment) -> dict[str, str]:
    """The client's headers, lower-case, but for credentials and what belongs to its connection."""
    named = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    if environ.get("CONTENT_TYPE"):
        named["content-type"] = environ["CONTENT_TYPE"]
    dropped = CREDENTIAL_HEADERS | OWN_HEADERS
    return {name: value for name, value in named.items() if name not in dropped and not is_sensitive(name)}
