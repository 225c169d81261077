"""The shapes of the maps: plain dicts at run time, read-only to the type checker.

Every map is open: a key that is not named here passes through untouched.  README.rst says the same in prose.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

if TYPE_CHECKING:
    from typing_extensions import ReadOnly

    from chatfn.secret import Secret

__version__ = "0.1.0"

Json = Mapping[str, Any]
Category = Literal[
    "unavailable",
    "interrupted",
    "busy",
    "incorrect",
    "forbidden",
    "unsupported",
    "not_found",
    "conflict",
    "fault",
]


class Auth(TypedDict):
    """How a request proves who sends it: ``{header}: {scheme} {secret}``, without the scheme if it is empty."""

    header: ReadOnly[str]
    scheme: ReadOnly[str]
    secret: ReadOnly[Secret]


class Bounds(TypedDict, total=False):
    """What may arrive, in bytes: a decoded body, one event of a stream, the headers of an answer."""

    body: ReadOnly[int]
    event: ReadOnly[int]
    headers: ReadOnly[int]


class Error(TypedDict):
    category: ReadOnly[Category]
    message: ReadOnly[str]
    status: NotRequired[ReadOnly[int]]
    type: NotRequired[ReadOnly[str | None]]
    code: NotRequired[ReadOnly[str | int | None]]
    param: NotRequired[ReadOnly[str | None]]
    body: NotRequired[ReadOnly[Any]]  # what the server sent, as data
    retry_after: NotRequired[ReadOnly[float]]  # seconds
    should_retry: NotRequired[ReadOnly[bool]]  # the server's own word: x-should-retry
    request_id: NotRequired[ReadOnly[str]]
    sent: NotRequired[ReadOnly[bool]]  # False: nothing of the request left, for there was no connection
    attempts: NotRequired[ReadOnly[int]]
    target: NotRequired[ReadOnly[str]]  # who failed last; of fallback and balance
    partial: NotRequired[ReadOnly[Json]]  # the completion as far as its stream came


class Request(TypedDict):
    operation: ReadOnly[str]
    method: ReadOnly[str]
    url: ReadOnly[str]
    headers: ReadOnly[Mapping[str, str]]  # lower-case names; a credential among them is a Secret
    auth: NotRequired[ReadOnly[Auth]]
    body: ReadOnly[Any]  # JSON data above the codec, bytes below it
    stream: ReadOnly[bool]
    timeout: ReadOnly[tuple[float, float]]  # seconds to connect, seconds of silence
    deadline: ReadOnly[float | None]  # seconds for the whole call
    bounds: ReadOnly[Bounds]
    proxies: NotRequired[ReadOnly[Mapping[str, str]]]
    verify: NotRequired[ReadOnly[bool | str]]
    cert: NotRequired[ReadOnly[str | tuple[str, str]]]
    model: NotRequired[ReadOnly[str | None]]  # as asked, if the body has another or none: Azure's deployment
    attempt: NotRequired[ReadOnly[int]]  # which attempt of the call this is, from 1
    attempts: NotRequired[ReadOnly[int]]  # how many attempts retry may make, if not its own number
    limits: NotRequired[ReadOnly[Json]]  # rpm, tpm, concurrency, if not the settings of limit
    due: NotRequired[ReadOnly[float]]  # the deadline on this process's monotonic clock, once the call has begun
    cancelled: NotRequired[ReadOnly[Callable[[], bool]]]  # set by callers on another thread than the transport's


class Response(TypedDict):
    status: ReadOnly[int]  # 0: none arrived
    headers: ReadOnly[Mapping[str, str]]
    body: ReadOnly[Any]  # data or an iterator of events above the codec, bytes or an iterator of bytes below it
    error: NotRequired[ReadOnly[Error]]
    attempts: NotRequired[ReadOnly[int]]
    elapsed: NotRequired[ReadOnly[float]]  # seconds until the answer, or until the first byte of a stream
    request_id: NotRequired[ReadOnly[str]]
    cached: NotRequired[ReadOnly[bool]]
    waited: NotRequired[ReadOnly[float]]  # seconds, for its turn under the limits
    target: NotRequired[ReadOnly[str]]  # who answered: deployment, model or impl, and host; of fallback and balance
    url: NotRequired[ReadOnly[str]]  # that of the target


class Operation(TypedDict):
    method: ReadOnly[str]
    path: ReadOnly[str]


Handler = Callable[[Request], Response]
AsyncHandler = Callable[[Request], Awaitable[Response]]
Middleware = Callable[[Any], Any]  # Handler -> Handler, AsyncHandler -> AsyncHandler
Events = Iterator[dict[str, Any]]
AsyncEvents = AsyncIterator[dict[str, Any]]
Classify = Callable[[int, Json], Category]
Trace = Callable[[Request, Response], object]
Named = str | Sequence[Any]  # "retry" or ["retry", {"attempts": 6}]


class Impl(TypedDict):
    env: ReadOnly[Mapping[str, str | Sequence[str]]]  # option -> environment variables, the first that is set wins
    defaults: ReadOnly[Json]
    auth: ReadOnly[Callable[[Options], Auth | None]]
    url: ReadOnly[Callable[[Operation, Json, Options], str]]
    headers: ReadOnly[Callable[[Options], Mapping[str, str]]]
    body: ReadOnly[Callable[[Json, Options], Json]]


class Options(TypedDict, total=False):
    impl: ReadOnly[str | Impl]
    api_key: ReadOnly[str | Secret | Callable[[], str]]
    ad_token: ReadOnly[str | Secret | Callable[[], str]]
    api_endpoint: ReadOnly[str]
    api_version: ReadOnly[str]
    deployment: ReadOnly[str]
    organization: ReadOnly[str]
    project: ReadOnly[str]
    openai_beta: ReadOnly[str]
    request: ReadOnly[Json]
    deadline: ReadOnly[float | None]
    bounds: ReadOnly[Bounds]
    surrogates: ReadOnly[Literal["refuse", "replace"]]
    allow_http: ReadOnly[bool]
    transport: ReadOnly[Handler | AsyncHandler | Named]
    middleware: ReadOnly[Sequence[Middleware | Named]]
    category_of: ReadOnly[Classify]
    on_next: ReadOnly[Callable[[dict[str, Any]], object]]
    trace: ReadOnly[Trace]
    full_response: ReadOnly[bool]
