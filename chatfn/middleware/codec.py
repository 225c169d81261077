"""The innermost layer: JSON data and event maps above, bytes below."""

from __future__ import annotations

import time
from functools import partial

from toolz import merge

from chatfn.core import decode, encode, mask_in_headers
from chatfn.errors import EXCERPT_CHARACTERS, category_of, error_map, failure
from chatfn.middleware import Call, Flow, middleware
from chatfn.middleware.call import FOLLOWED, redirected
from chatfn.middleware.reading import Read, event_reader, interrupted, leave, read, streamed, worded
from chatfn.middleware.streams import aevents, events
from chatfn.secret import mask, mask_all, secrets_of
from chatfn.spec import Category, Classify, Error, Request, Response

WHOLE_BYTES = 65_536  # of an answer that should have been a stream


@middleware
def codec(request: Request, classify: Classify = category_of) -> Flow:
    """Bytes for the transport and data for the rest, whole or streamed; what is no answer gets its ``error`` here.

    No secret is in a variable here while another works: what it raises shows the variables of this frame too."""
    if request.get("cancelled", bool)():  # nothing new is sent for a caller who has gone
        return failure("interrupted", "the call was cancelled")
    try:
        sent = encode(request)
        response: Response = yield sent
        if response["status"] in FOLLOWED:
            response = yield from redirected(sent, response)
    except OSError as exc:  # of a transport of the caller's own
        category: Category = "interrupted" if isinstance(exc, TimeoutError) else "unavailable"
        return failure(category, worded(exc, secrets_of(request)))
    if "error" in response:
        secrets = secrets_of(request)
        headers = mask_all(dict(response["headers"]), secrets)
        return {**response, "headers": headers, "error": mask_all(response["error"], secrets)}
    body = response["body"]
    if not request["stream"] or not 200 <= response["status"] < 300:
        whole = b"".join(body) if isinstance(body, (list, tuple)) else body
        return decode({**response, "body": whole}, secrets_of(request), classify, time.time())
    response = {**response, "headers": mask_in_headers(response["headers"], secrets_of(request))}
    if isinstance(body, bytes):
        body = iter([body])
    elif not hasattr(body, "__anext__"):
        body = aiter(body) if hasattr(body, "__aiter__") else iter(body)
    kind = response["headers"].get("content-type", "text/event-stream").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        return (yield from no_stream({**response, "body": body}, kind, request, classify))
    first: Read = yield Call(partial(read, body))
    if not isinstance(first.chunk, bytes):
        yield Call(partial(leave, body))
        error = first.chunk or interrupted("the stream ended before its first byte")
        masked: Error = mask_all(merge({"status": response["status"]}, error), secrets_of(request))
        return {**response, "body": None, "error": masked}
    due = None if response.get("arrived") else request.get("due")  # what is at hand may be of another clock
    steps = streamed(body, first, request, due, event_reader(request, response, secrets_of(request), classify))
    return {**response, "body": (aevents if hasattr(body, "__anext__") else events)(steps, body)}


def no_stream(response: Response, kind: str, request: Request, classify: Classify) -> Flow:
    """The error of a 2xx that should stream and does not: the server's own, if its body is one."""
    body, text, left = response["body"], b"", request["timeout"][1]
    while len(text) < WHOLE_BYTES and left > 0:
        got: Read = yield Call(partial(read, body))
        if not isinstance(got.chunk, bytes):
            break
        text += got.chunk
        left -= got.waited
    yield Call(partial(leave, body))
    secrets = secrets_of(request)
    found = decode({**response, "body": text}, secrets, classify, time.time())
    if "error" in found and isinstance(found["body"], dict):
        return found
    excerpt = mask(text.decode("utf-8", "replace"), secrets)[:EXCERPT_CHARACTERS]
    error = error_map(response["status"], response["headers"], found["body"], classify, time.time())
    message = f"asked for a stream, got {kind or 'no content type'}: {excerpt}"
    if "error" in found:
        return {**found, "error": {**error, "message": message}}
    paid: Error = {**error, "message": message, "partial": found["body"], "should_retry": False}
    return {**found, "error": paid}
