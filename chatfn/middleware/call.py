"""The small layers around every call: its clock, its credential, its trace, its redirects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from chatfn.chunks import collector
from chatfn.core import with_totals
from chatfn.errors import category_of, failure
from chatfn.middleware import NOW, Call, Flow, middleware
from chatfn.middleware.streams import tapped
from chatfn.secret import Secret, problem_of
from chatfn.spec import Category, Classify, Error, Request, Response, Trace

REDIRECTS = 5
FOLLOWED = (307, 308)


@middleware
def timed(request: Request) -> Flow:
    """Outermost: the deadline becomes a time on this process's clock; the response says how long it took."""
    began: float = yield NOW
    if request["deadline"] is not None:
        request = {**request, "due": began + request["deadline"]}
    response: Response = yield request
    ended: float = yield NOW
    return with_totals(response, ended - began)


@middleware
def authorize(request: Request) -> Flow:
    """A credential that is a function is asked for every attempt, and once more at once when the server says 401."""
    auth = request.get("auth")
    if auth is None or auth["secret"].kind != "function":
        only: Response = yield request
        return only
    for made in (1, 2):
        try:
            value = yield Call(auth["secret"].reveal)
            problem = problem_of(value)
        except Exception as exc:  # whatever the caller's function raises, this call has no credential
            problem = f"raised {type(exc).__name__}: {str(exc)[:500]}"
        if problem:
            return failure("forbidden", f"the function for the credential {problem.replace('is ', 'gave what is ', 1)}")
        attempt = request.get("attempt", 1) + made - 1
        secret = Secret(value)
        del value
        response: Response = yield {**request, "auth": {**auth, "secret": secret}, "attempt": attempt}
        if response["status"] != 401:
            break
    return {**response, "attempts": made}


@middleware
def tracing(request: Request, trace: Trace) -> Flow:
    """Show each attempt to ``trace(request, response)``: whole ones once, streams at their headers and at their end."""
    response: Response = yield request
    body = response["body"]
    if "error" in response or not (hasattr(body, "__next__") or hasattr(body, "__anext__")):
        show(trace, request, response)
        return response
    headers_only: Response = {**response, "body": None}
    show(trace, request, headers_only)
    fold = collector()

    def end(error: Error | None) -> None:
        folded: dict[str, Any] = {**response, "body": fold.completion()}
        show(trace, request, cast(Response, folded if error is None else {**folded, "error": error}))

    return {**response, "body": tapped(body, fold.add, end)}


def show(trace: Trace, request: Request, response: Response) -> None:
    """Call ``trace``; its failure is a warning, for the answer is paid for."""
    try:
        trace(request, response)
    except Exception as exc:
        warnings.warn(f"the trace function raised {type(exc).__name__}", RuntimeWarning, stacklevel=2)


def careful(classify: Classify) -> Classify:
    """``classify``, whose failure is a warning: what it raises would show the secrets of the frames that it passes."""
    if classify is category_of:
        return classify

    def classified(status: int, wire: Mapping[str, Any]) -> Category:
        try:
            return classify(status, wire)
        except Exception as exc:
            problem = type(exc).__name__
        warnings.warn(f"the function category_of raised {problem}", RuntimeWarning, stacklevel=2)
        return category_of(status, wire)

    return classified


def redirected(request: Request, response: Response) -> Flow:
    """Follow 307 and 308 to the same origin; any other redirect stays what it is, an error."""
    for _ in range(REDIRECTS):
        target = target_of(request["url"], response)
        if target is None:
            break
        response = yield {**request, "url": target}
    return response


def target_of(url: str, response: Response) -> str | None:
    """Where a response sends its request on to, if that may be followed."""
    location = response["headers"].get("location")
    if response["status"] not in FOLLOWED or not location:
        return None
    try:
        target = urljoin(url, location)
    except ValueError:
        return None
    return target if origin(target) == origin(url) else None


def origin(url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port of a URL, or None if it has none or comes with a user in it.

    >>> origin("https://h/a") == origin("https://H:443/b"), origin("https://u@h/")
    (True, None)
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return None if "@" in parts.netloc or not parts.hostname else (parts.scheme, parts.hostname, port)
