"""Params to request, request to bytes, bytes to response, response to completion: pure functions of maps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast
from urllib.parse import urlsplit

from pyrsistent import thaw
from toolz import merge

from chatfn.errors import (
    EXCERPT_CHARACTERS,
    ChatError,
    category_of,
    error_map,
    request_id_of,
)
from chatfn.fastjson import fast_dumps, fast_loads
from chatfn.impls import with_path
from chatfn.operations import OPERATIONS
from chatfn.options import (
    CREDENTIAL_HEADERS,
    DEADLINE,
    bounds_of,
    check_url,
    headers_of,
    is_loopback,
    present,
    query_of,
    resolve,
    timeout_of,
)
from chatfn.plain import MAPPINGS, plain, without
from chatfn.sealing import sealed
from chatfn.secret import SHORTEST_IN_ANSWERS, Secret, mask, mask_all
from chatfn.spec import Auth, Classify, Error, Impl, Json, Operation, Options, Request, Response, __version__

NO_OPTIONS: Options = {}
CLIENT_PARAMS = frozenset({"on_next", "on-next", "stream_buffer_len"})  # of the Clojure library; never on the wire
JSON_HEADERS = {
    "accept": "application/json",
    "content-type": "application/json",
    "user-agent": f"chatfn/{__version__}",
}


def build_request(params: Json, options: Options | Json = NO_OPTIONS) -> Request:
    """The request map of a chat completion: what would be sent, without sending it, and without a secret in it.

    Pure: the environment is not read, and no key is needed.  ``TypeError`` and ``ValueError`` name what can't be sent.

    >>> request = build_request({"model": "m", "messages": []}, {"api_key": "sk-1"})
    >>> request["url"], request["body"], request["auth"]
    ... # doctest: +NORMALIZE_WHITESPACE
    ('https://api.openai.com/v1/chat/completions', {'model': 'm', 'messages': []},
     {'header': 'authorization', 'scheme': 'Bearer', 'secret': '***'})
    """
    options = sealed(options)
    return request_of(params, resolve(options))


def request_of(params: Json, options: Options) -> Request:
    """The request map of a chat completion, from resolved options."""
    return requester(options)(params)


def requester(options: Options) -> Callable[[Json], Request]:
    """A function of params to request maps; what follows from the resolved options alone is done once, here."""
    impl = cast(Impl, options["impl"])
    operation: Operation = thaw(OPERATIONS["create_chat_completion"])  # a dict is looked into faster
    given = options.get("request", {})
    asked = headers_of(given.get("headers") or {})
    query = query_of(given.get("query") or {})
    auth = auth_of(options)
    common: dict[str, Any] = {
        "operation": "create_chat_completion",
        "method": operation["method"],
        "headers": present(merge(JSON_HEADERS, impl["headers"](options), asked)),
        "timeout": timeout_of(given.get("timeout")),
        "bounds": bounds_of(options),
        **present({name: given.get(name) for name in ("proxies", "verify", "cert")}),
        **({} if auth is None else {"auth": auth}),
    }

    def request(params: Json) -> Request:
        if not isinstance(params, MAPPINGS):
            example = "{'model': …, 'messages': […]}"
            raise TypeError(f"params are {type(params).__name__}; give a mapping such as {example}")
        clean = CLIENT_PARAMS.isdisjoint(params)
        data = plain(params if clean else without(params, *CLIENT_PARAMS), options["surrogates"])
        url = impl["url"](operation, data, options)
        if query:
            url = with_path(url, urlsplit(url).path, query)
        check_url("the URL", url)
        stream = bool(data.get("stream"))
        deadline = options.get("deadline", None if stream else DEADLINE)
        body = impl["body"](data, options)
        found: Any = {**common, "url": url, "body": body, "stream": stream, "deadline": deadline}
        if body.get("model") != data.get("model"):
            found["model"] = data.get("model")  # as asked, where the body does not say it
        check_exposure(found, options)
        whole: Request = found
        return whole

    return request


def auth_of(options: Options) -> Auth | None:
    """How a request is authorized: as its impl says, unless headers that are given hold a credential."""
    headers = headers_of(options.get("request", {}).get("headers") or {})
    return None if headers.keys() & CREDENTIAL_HEADERS else cast(Impl, options["impl"])["auth"](options)


def check_exposure(request: Json, options: Options) -> None:
    """Raise if a credential would cross the network unencrypted."""
    exposed = exposed_host(request["url"])
    if exposed is None or options["allow_http"]:
        return
    if "auth" in request or any(isinstance(value, Secret) for value in request["headers"].values()):
        raise ValueError(
            f"the endpoint http://{exposed} would send the key unencrypted; "
            'use https, or give the option {"allow_http": True}'
        )


@lru_cache(1_024)
def exposed_host(url: str) -> str | None:
    """The host of a URL that is reached unencrypted, over a network; or None.

    >>> exposed_host("http://host:80/v1"), exposed_host("http://127.0.0.1/v1"), exposed_host("https://host/v1")
    ('host:80', None, None)
    """
    parts = urlsplit(url)
    return parts.netloc if parts.scheme == "http" and not is_loopback(parts.hostname or "") else None


def wire_headers(request: Request) -> dict[str, str]:
    """The headers as they go over the wire, credentials in the clear: for transports, at the moment of sending.

    >>> wire_headers(build_request({"model": "m"}, {"api_key": "sk-1"}))["authorization"]
    'Bearer sk-1'
    """
    headers = {k: v.reveal() if isinstance(v, Secret) else v for k, v in request["headers"].items()}
    auth = request.get("auth")
    if auth is not None:
        headers[auth["header"]] = f"{auth['scheme']} {auth['secret'].reveal()}".lstrip()
    return headers


def encode(request: Request) -> Request:
    """The same request with its body as bytes of compact JSON, keys in the order in which they stand."""
    body = request["body"]
    text = fast_dumps(body)
    if text is None:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return {**request, "body": text}


def parse(body: bytes) -> Any:
    """The data of a JSON text in UTF-8, whatever it says of its charset; ``ValueError`` for anything else."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    data = fast_loads(body)
    if data is not None:
        return data
    try:
        return json.loads(body.decode())
    except RecursionError:
        problem = "nested too deeply"
    raise ValueError(problem)


def decode(response: Response, secrets: list[str], classify: Classify = category_of, now: float = 0.0) -> Response:
    """The response with its bytes as data, and with an ``error`` unless it is a 2xx whose body is one JSON map.

    ``secrets``: values to mask, should the server echo one.

    >>> decode({"status": 200, "headers": {}, "body": b"[]"}, [])["error"]["message"]
    'a 200 answer that is no JSON map: []'
    """
    status, headers, body = response["status"], response["headers"], response["body"]
    data = data_of(body)
    if 200 <= status < 300 and isinstance(data, dict) and not data.get("error"):
        whole: Response = {
            **response,
            "headers": mask_in_headers(headers, secrets),
            "body": mask_in_answer(data, body, secrets),
        }
        return whole
    headers = mask_all(dict(headers), secrets)
    data = mask_all(data, secrets)
    error = error_map(status, headers, data, classify, now)
    if 200 <= status < 300 and not (isinstance(data, dict) and data.get("error")):
        text = mask(text_of(body), secrets).lstrip("\ufeff").strip()
        said = f": {text[:EXCERPT_CHARACTERS]}" if text else ", and is empty"
        error = cast(Error, {**error, "message": f"a {status} answer that is no JSON map{said}"})
    return {**response, "headers": headers, "body": data, "error": error}


def data_of(body: Any) -> Any:
    """The data in a body: of bytes what they say in JSON, else their text."""
    if not isinstance(body, (bytes, bytearray)):
        return "" if body is None else body
    try:
        return parse(bytes(body))
    except ValueError:
        return text_of(body)


def text_of(body: Any) -> str:
    """A body as its sender wrote it, in UTF-8."""
    if isinstance(body, (bytes, bytearray)):
        return bytes(body).decode("utf-8", "replace")
    return body or "" if isinstance(body, str | None) else json.dumps(body, ensure_ascii=False)


def mask_in_answer(data: Any, body: Any, secrets: list[str]) -> Any:
    """The data of a good answer; a secret in it, should it be long enough to be one, is masked."""
    for value in secrets:
        if len(value) >= SHORTEST_IN_ANSWERS and isinstance(body, (bytes, bytearray)) and value.encode() in body:
            return mask_all(data, secrets, SHORTEST_IN_ANSWERS)
    return data


def mask_in_headers(headers: Mapping[str, str], secrets: list[str]) -> Mapping[str, str]:
    """The headers of a good answer, likewise."""
    for value in secrets:
        if len(value) >= SHORTEST_IN_ANSWERS and value in " ".join(map(str, headers.values())):
            masked: dict[str, str] = mask_all(dict(headers), secrets, SHORTEST_IN_ANSWERS)
            return masked
    return headers


def with_totals(response: Response, elapsed: float) -> Response:
    """The response with what its caller may ask of it: ``attempts``, ``elapsed`` and, if the server gave one,
    ``request_id``."""
    attempts = response.get("attempts", 1)
    found: Any = {**response, "attempts": attempts, "elapsed": elapsed}
    request_id = request_id_of(response["headers"])
    if request_id is not None:
        found["request_id"] = request_id
    if "error" in response:
        found["error"] = {**response["error"], "attempts": attempts}
    whole: Response = found
    return whole


def completion_of(response: Response) -> Any:
    """The body of a good response; raises the ``ChatError`` of a failed one.

    >>> completion_of({"status": 200, "headers": {}, "body": {"id": "c"}})
    {'id': 'c'}
    """
    if "error" in response:
        raise ChatError(response["error"])
    return response["body"]
