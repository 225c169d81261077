"""libcurl's codes in the terms of requests and http.client, whose failures the default transport has words for."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from functools import partial

import pycurl
from requests.exceptions import ConnectTimeout, ProxyError, SSLError

from chatfn.transports.timed_socket import HeadTooLarge

BROKEN: dict[int, Callable[[], Exception]] = {
    pycurl.E_PARTIAL_FILE: partial(http.client.IncompleteRead, b""),
    pycurl.E_GOT_NOTHING: partial(http.client.RemoteDisconnected, ""),
    pycurl.E_ABORTED_BY_CALLBACK: partial(http.client.RemoteDisconnected, ""),
    pycurl.E_OPERATION_TIMEDOUT: ConnectTimeout,
}
TLS = {
    pycurl.E_SSL_CONNECT_ERROR,
    pycurl.E_PEER_FAILED_VERIFICATION,
    pycurl.E_SSL_CERTPROBLEM,
    pycurl.E_SSL_CIPHER,
    pycurl.E_SSL_CACERT_BADFILE,
    pycurl.E_SSL_ISSUER_ERROR,
}
IMPROPER = {pycurl.E_UNSUPPORTED_PROTOCOL, 8, 61}  # CURLE_WEIRD_SERVER_REPLY, CURLE_BAD_CONTENT_ENCODING
TOO_LARGE = 100  # CURLE_TOO_LARGE
PROXY = 97  # CURLE_PROXY


def cause_of(code: int, words: str, proxy: str) -> Exception:
    """An exception of requests' or http.client's for a code of libcurl's."""
    if code in BROKEN:
        return BROKEN[code]()
    if code in TLS:
        return SSLError(words)
    if proxy and (code in (pycurl.E_COULDNT_CONNECT, pycurl.E_COULDNT_RESOLVE_PROXY, PROXY) or "CONNECT" in words):
        return ProxyError(f"{words} (SOCKS)" if proxy.startswith("socks") else words)
    if code == TOO_LARGE or "response headers" in words:
        return HeadTooLarge()
    if code in IMPROPER:
        return http.client.HTTPException(words)
    if "chunk" in words:
        return http.client.HTTPException("its chunks are malformed")
    if code in (pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR, 16, 92):  # CURLE_HTTP2, CURLE_HTTP2_STREAM
        return ConnectionError(words)
    return OSError(words)
