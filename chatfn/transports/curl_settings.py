"""What is set once for each of libcurl's handles: where it may connect to, through what, and whom it trusts there."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import pycurl
import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH, prepend_scheme_if_needed, select_proxy

from chatfn.secret import Secret
from chatfn.spec import Request
from chatfn.transports.requests import tls_context

SUPPRESS_CONNECT_HEADERS = 265  # of libcurl's curl.h; pycurl has no name for it
HTTP = {  # the setting "http" of the transport
    "1.1": pycurl.CURL_HTTP_VERSION_1_1,
    "2": pycurl.CURL_HTTP_VERSION_2TLS,
    "2-prior-knowledge": pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE,
}

Pairs = tuple[tuple[str, str], ...]


class Way(NamedTuple):
    """How to reach a server: what two requests must have in common to use one handle."""

    secure: bool
    proxy: str  # empty for none
    verify: bool | str
    cert: tuple[str, ...]


def way_of(request: Request) -> tuple[Way, str]:
    """The way to a request's server, by its settings and by the environment's when it was first asked; its origin."""
    given = request.get("proxies")
    proxies = tuple(sorted((k, v.reveal() if isinstance(v, Secret) else v) for k, v in given.items())) if given else ()
    cert = request.get("cert") or ()
    files = (cert,) if isinstance(cert, str) else tuple(cert)
    return found_way(request["url"], proxies, request.get("verify", True), files)


@lru_cache(1_024, typed=True)  # 1 is not True, and no path either
def found_way(url: str, proxies: Pairs, verify: bool | str, cert: tuple[str, ...]) -> tuple[Way, str]:
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    return origin_way(origin, proxies, verify, cert), origin


@lru_cache(1_024, typed=True)  # 1 is not True, and no path either
def origin_way(origin: str, proxies: Pairs, verify: bool | str, cert: tuple[str, ...]) -> Way:
    settings = requests.Session().merge_environment_settings(
        origin, dict(proxies), True, verify, cast(Any, cert or None)
    )
    proxy = select_proxy(origin, settings["proxies"])
    secure = origin.startswith("https:")
    trusted = settings["verify"]
    if secure and (cert or isinstance(trusted, str)):
        tls_context(trusted, cert or None)  # raises for what can't be read
    return Way(secure, prepend_scheme_if_needed(proxy, "http") if proxy else "", trusted, cert)


def new_handle(way: Way, http: str) -> Any:
    """A handle of libcurl with all that does not change from request to request."""
    curl = pycurl.Curl()
    for option, value in (
        (pycurl.NOSIGNAL, 1),
        (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
        (pycurl.PATH_AS_IS, 1),
        (pycurl.HTTP_VERSION, HTTP[http]),
        (pycurl.PIPEWAIT, int(http == "2-prior-knowledge" or (way.secure and http == "2"))),
        (pycurl.USERAGENT, ""),
        (pycurl.TCP_KEEPALIVE, 1),
        (pycurl.CONNECTTIMEOUT, 1_000_000),
        (pycurl.UPLOAD_BUFFERSIZE, 16_384),
        (pycurl.HEADEROPT, pycurl.HEADER_SEPARATE),
        (SUPPRESS_CONNECT_HEADERS, 1),
        (pycurl.NOPROXY, ""),
        *proxy_options(way.proxy),
        *(tls_options(way) if way.secure or way.proxy.startswith("https:") else ()),
    ):
        curl.setopt(option, value)
    return curl


def proxy_options(proxy: str) -> list[tuple[int, Any]]:
    """An empty PROXY keeps libcurl from the environment, which requests has read already."""
    if not proxy:
        return [(pycurl.PROXY, "")]
    parts = urlsplit(proxy)
    host = parts.netloc.rpartition("@")[2]
    words = [
        (pycurl.PROXYUSERNAME, unquote(parts.username or "")),
        (pycurl.PROXYPASSWORD, unquote(parts.password or "")),
    ]
    return [(pycurl.PROXY, f"{parts.scheme}://{host}"), *(words if parts.username is not None else ())]


def tls_options(way: Way) -> list[tuple[int, Any]]:
    from os.path import isdir

    proxied = way.proxy.startswith("https:")
    options: list[tuple[int, Any]] = [(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)]
    if way.verify is False:
        options += [(pycurl.SSL_VERIFYPEER, 0), (pycurl.SSL_VERIFYHOST, 0)]
        options += [(pycurl.PROXY_SSL_VERIFYPEER, 0), (pycurl.PROXY_SSL_VERIFYHOST, 0)] if proxied else []
    else:
        path = DEFAULT_CA_BUNDLE_PATH if way.verify is True else way.verify
        names = (pycurl.CAPATH, pycurl.PROXY_CAPATH) if isdir(path) else (pycurl.CAINFO, pycurl.PROXY_CAINFO)
        options += [(name, path) for name in names[: 1 + proxied]]
    if way.cert:
        options += [(pycurl.SSLCERT, way.cert[0]), (pycurl.SSLKEY, way.cert[-1])]
    return options
