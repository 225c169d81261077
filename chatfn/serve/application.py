"""The chat routes of OpenAI and of Azure as a WSGI application.  Nothing of a request or an answer is logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from chatfn.errors import MESSAGE_CHARACTERS, ChatError
from chatfn.middleware import is_async
from chatfn.options import BOUNDS
from chatfn.secret import Secret, problem_of, seal
from chatfn.serve.incoming import Cancelled, request_map
from chatfn.serve.outgoing import error_response, wire_response
from chatfn.spec import Handler, Response

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def app(
    handler: Handler,
    *,
    key: str | Secret | None = None,
    max_body: int = BOUNDS["body"],
    cancelled: Cancelled | None = None,
) -> WSGIApplication:
    """A WSGI application that answers chat completions from ``handler``, a handler above the codec.

    It answers POST on every path that ends in ``/chat/completions``; on Azure's
    ``/openai/deployments/{name}/chat/completions`` a body without ``model`` gets the name as its model.  The handler is
    given a request map whose headers and URL hold no credential of the client; the host in its URL is what the client
    says.  It returns a response map whose body is data, bytes, or an iterator of event maps or bytes; if the request
    and the body differ in being a stream, the one is made of the other.  Events are sent one by one; when the client
    goes away the iterator is closed.

    Errors have the API's form: those of the response map with their status (0: 502, or 504 if it was interrupted); a
    ``ValueError`` or ``TypeError`` says what is wrong with the request, 400; any other exception is a 500 without its
    words, which may be private.

    ``key``: what clients must give, as ``Authorization: Bearer …`` or ``api-key: …``.  Without one, web pages of other
    origins are refused, for a browser would let any page spend.  ``max_body``: bytes.  ``cancelled``: a function that
    says when to stop at once; the request map has it too.
    Source: https://peps.python.org/pep-3333/, https://platform.openai.com/docs/api-reference/chat

    >>> call = app(lambda request: {"status": 200, "headers": {}, "body": {"model": request["body"]["model"]}})
    >>> from io import BytesIO
    >>> from wsgiref.util import setup_testing_defaults
    >>> body = b'{"model": "m", "messages": []}'
    >>> environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/chat/completions", "wsgi.input": BytesIO(body)}
    >>> environ["CONTENT_LENGTH"] = str(len(body))
    >>> setup_testing_defaults(environ)
    >>> b"".join(call(environ, lambda status, headers: print(status)))
    200 OK
    b'{"model":"m"}'
    """
    key = cast("Secret | None", seal(key))
    problem = problem_of(key.reveal()) if isinstance(key, Secret) else None
    if problem:
        raise ValueError(f"the key for clients {problem}")
    if is_async(handler):
        raise TypeError("the handler is asynchronous; give a blocking one")

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = answer(environ, handler, key, max_body, cancelled)
        status, body = response["status"], response["body"]
        sized = {"content-length": str(len(body))} if isinstance(body, bytes) else {"cache-control": "no-cache"}
        start_response(f"{status} {phrase(status)}", [*{**response["headers"], **sized}.items()])
        return [body] if isinstance(body, bytes) else cast("Iterator[bytes]", body)

    return application


def phrase(status: int) -> str:
    """The reason phrase of a status; some are in use that no standard names.

    >>> phrase(404), phrase(529)
    ('Not Found', 'Error')
    """
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error" if status >= 400 else "OK"


def answer(
    environ: WSGIEnvironment, handler: Handler, key: Secret | None, max_body: int, cancelled: Cancelled | None
) -> Response:
    """The response map to send: its body bytes, or an iterator of bytes that is closed with its reader."""
    problem: Exception
    try:
        request = request_map(environ, key, max_body, cancelled)
        return wire_response(request, handler(request), cancelled or bool)
    except ChatError as exc:
        return error_response(exc.error)
    except Exception as exc:
        problem = exc
    if type(problem) not in (ValueError, TypeError):  # their subclasses (of JSON, of Unicode) say nothing to a client
        environ["wsgi.errors"].write(f"chatfn.serve: {where(problem)}\n")
        return error_response({"category": "fault", "message": "the server failed at this request", "status": 500})
    return error_response({"category": "incorrect", "message": str(problem)[:MESSAGE_CHARACTERS], "status": 400})


def where(exc: Exception) -> str:
    """The kind and the place of an exception, without its words.

    >>> where(KeyError("private"))
    'KeyError'
    """
    trace, name = exc.__traceback__, type(exc).__name__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return name if trace is None else f"{name} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
