"""What answers used: the token counts of an attempt, and of all the attempts of a call.

An attempt that failed may have been paid all the same: a stream that broke after its usage, a 2xx that was refused.
``retry`` keeps such attempts in the response as ``paid``, so that no token is lost on the way to a row or a journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

from chatfn.plain import MAPPINGS, without
from chatfn.spec import Json, Request, Response

Paid = dict[str, Any]  # what one attempt used: "usage", and, as far as they are known, what its price depends on
OURS = ("forbidden", "incorrect", "not_found", "unsupported")  # without a status: it never left this process
PRICED = ("model", "service_tier", "created")


def own_usage(response: Json) -> Json | None:
    """The usage of the last attempt of a response map, or None.

    >>> own_usage({"status": 200, "body": {"usage": {"total_tokens": 3}}})
    {'total_tokens': 3}
    >>> own_usage({"status": 200, "body": None, "error": {"partial": {"usage": {"total_tokens": 2}}}})
    {'total_tokens': 2}
    """
    said = said_of(response)
    usage = said.get("usage") if said is not None else None
    return usage if isinstance(usage, MAPPINGS) else None


def said_of(response: Json) -> Json | None:
    """What an attempt answered, or had answered when it broke: a completion, or None."""
    body, error = response.get("body"), response.get("error")
    if error is not None:
        found = error.get("partial")
        if found is None and 200 <= response.get("status", 0) < 300:
            found = body if isinstance(body, MAPPINGS) else error.get("body")
        body = found
    return body if isinstance(body, MAPPINGS) else None


def paid_of(request: Json, response: Json) -> list[Paid]:
    """What the attempts of a response used, earlier ones first: those that are known to have used anything.

    >>> answer = {"model": "m", "usage": {"total_tokens": 3}}
    >>> paid_of({"url": "https://h/v1"}, {"status": 200, "body": answer})
    [{'model': 'm', 'usage': {'total_tokens': 3}, 'url': 'https://h/v1'}]
    """
    earlier = list(response.get("paid", ()))
    usage = own_usage(response)
    if usage is None:
        return earlier
    said = cast(Json, said_of(response))
    known = {name: said[name] for name in PRICED if said.get(name) is not None}
    return [*earlier, {**known, "usage": usage, "url": response.get("url") or request["url"]}]


def with_paid(response: Response, paid: Sequence[Paid]) -> Response:
    """The response with what earlier attempts used: ``paid``, and, unless it is a stream that has yet to say what it
    uses itself, ``usage``, the sum over all attempts."""
    if not paid:
        return response
    own: Sequence[Paid] = cast(Any, response).get("paid", ())
    more: dict[str, Any] = {**response, "paid": [*paid, *own]}
    if not is_stream(response):
        more["usage"] = usage_of(without(more, "usage"))
    return cast(Response, more)


def is_stream(response: Json) -> bool:
    body = response.get("body")
    return "error" not in response and (hasattr(body, "__next__") or hasattr(body, "__anext__"))


def usage_of(response: Json) -> Json | None:
    """The usage of all attempts of a response map, or None if none is known.

    >>> usage_of({"status": 200, "body": {"usage": {"total_tokens": 3}}, "paid": [{"usage": {"total_tokens": 2}}]})
    {'total_tokens': 5}
    """
    if "usage" in response:
        return cast("Json | None", response["usage"])
    own = own_usage(response)
    if "paid" not in response:
        return own
    earlier: list[Json] = [paid["usage"] for paid in response["paid"]]
    return sum_of(earlier if own is None else [*earlier, own])


def sum_of(usages: Sequence[Json]) -> Json | None:
    found: Json | None = None
    for usage in usages:
        found = usage if found is None else added(found, usage)
    return found


def added(a: Json, b: Json) -> dict[str, Any]:
    """The sum of two usages, details included; what is no number stays as it was first.

    >>> added({"total_tokens": 3, "details": {"cached": 1}}, {"total_tokens": 2, "details": {"cached": 1, "audio": 4}})
    {'total_tokens': 5, 'details': {'cached': 2, 'audio': 4}}
    """
    return {**a, **{name: value if a.get(name) is None else plus(a[name], value) for name, value in b.items()}}


def plus(a: Any, b: Any) -> Any:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return added(a, b)
    return a + b if is_number(a) and is_number(b) else a


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_free(response: Json) -> bool:
    """Whether a response is of an attempt that surely cost nothing: nothing was sent, or the server refused it.

    A timeout, a cut answer, a connection that closed without one and a gateway's 502 or 504 leave it open whether the
    model ran; so does a 2xx that is no answer.

    >>> is_free({"status": 429, "error": {"category": "busy"}}), is_free({"status": 0, "error": {"category": "fault"}})
    (True, False)
    """
    error = response.get("error")
    if error is None or own_usage(response) is not None or error.get("partial") is not None:
        return False
    status = response.get("status") or 0
    if status == 0:
        return error.get("sent") is False or response.get("attempts") == 0 or error.get("category") in OURS
    return 300 <= status < 500 or status in (500, 501, 503, 529)


def unsure_of(response: Json) -> int:
    """Of how many attempts of a response nobody knows what they cost: of ``unsure`` earlier ones, and of its own if it
    is no answer, told of no usage, and was not surely free.

    >>> timeout = {"status": 0, "body": None, "error": {"category": "interrupted"}, "unsure": 1}
    >>> unsure_of(timeout), unsure_of({"status": 200, "body": {}}), unsure_of({"status": 429, "error": {}})
    (2, 0, 0)
    """
    own = "error" in response and own_usage(response) is None and not is_free(response)
    return int(response.get("unsure", 0)) + own


def with_unsure(response: Response, earlier: int) -> Response:
    """The response with so many ``earlier`` attempts of unknown cost beside those that it knows of.

    >>> with_unsure({"status": 200, "unsure": 1}, 2), with_unsure({"status": 200}, 0)
    ({'status': 200, 'unsure': 3}, {'status': 200})
    """
    known = cast(Any, response).get("unsure", 0) + earlier
    return cast(Response, {**response, "unsure": known}) if earlier else response


def model_asked(request: Request) -> str | None:
    """The model that a request names: in its body, or, as Azure's dated versions have it, as the deployment in its URL.

    >>> model_asked({"url": "https://h/openai/deployments/my-gpt/chat/completions?api-version=1", "body": {}})
    'my-gpt'
    """
    body = request["body"]
    model = body.get("model") if isinstance(body, MAPPINGS) else None
    if isinstance(model, str):
        return model
    _, found, rest = request["url"].partition("/deployments/")
    return unquote(rest.split("/")[0]) if found else None
