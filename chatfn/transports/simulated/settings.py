"""The settings of a simulated server, made whole: distributions, limits and faults, from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

from chatfn.options import nearest

Draw = Callable[[Random], float]

P99 = 2.3263478740408408  # standard deviations from the median to the 99th percentile of a normal distribution
LATENCY: Any = {"median": 1.0, "p99": 5.0}
OUTPUT: Any = {"median": 100, "p99": 600}
KINDS = ("timeout", "unavailable", "cut", "broken", "crash")
KNOWN = ("latency", "token_latency", "output_tokens", "bytes_per_token", "limits", "capacity", "faults", "seed")
LIMITS = ("rpm", "tpm", "window", "period", "burst", "headers", "retry_after", "counted", "punish")
FAULT = ("status", "kind", "rate", "from", "until", "seconds", "headers", "code", "message", "url")
WINDOWS = ("bucket", "fixed")
COUNTED = ("used", "asked")


class Limits(NamedTuple):
    """What the server allows, and what it says of that."""

    rpm: float | None
    tpm: float | None
    window: str  # "bucket": it fills evenly; "fixed": all is there again at the end of each period
    period: float  # seconds
    burst: float  # part of a limit that a bucket holds
    headers: bool  # x-ratelimit-*
    retry_after: bool
    counted: str  # "used": the tokens that the answer will have; "asked": the most that it might have
    punish: bool  # refused requests count too


class Fault(NamedTuple):
    status: int  # 0: none of HTTP
    kind: str
    rate: float
    since: float
    until: float
    seconds: float | None  # until it shows; of a crash, how long the server is away
    headers: Mapping[str, str]
    code: str | None
    message: str
    url: str  # a part of the URLs that it comes of


class Settings(NamedTuple):
    latency: Draw  # seconds until the first token
    token_latency: Draw  # seconds of each token
    output_tokens: Draw
    bytes_per_token: float
    limits: Limits
    capacity: float  # requests at once; with more of them each takes longer, in proportion
    faults: tuple[Fault, ...]
    seed: Any


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings made whole.  Raises ``ValueError`` and ``TypeError``, which name the nearest known one.

    >>> settings_of({"latencey": 1})
    Traceback (most recent call last):
    ValueError: unknown setting 'latencey' of 'simulated': did you mean 'latency'?
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"the settings of 'simulated' are {given!r}; give a map such as {{'latency': 1.5}}")
    check_names(given, KNOWN, "setting", "of 'simulated'")
    capacity = given.get("capacity")
    return Settings(
        draw_of(given.get("latency", LATENCY), "latency"),
        draw_of(given.get("token_latency", 0.0), "token_latency"),
        draw_of(given.get("output_tokens", OUTPUT), "output_tokens"),
        number(given.get("bytes_per_token", 4.0), "bytes_per_token", more=True),
        limits_of(given.get("limits") or {}),
        math.inf if capacity is None else number(capacity, "capacity", more=True),
        faults_of(given.get("faults") or ()),
        given.get("seed", 0),
    )


def limits_of(given: Any) -> Limits:
    if not isinstance(given, Mapping):
        raise TypeError(f"'limits' of 'simulated' is {given!r}; give a map such as {{'rpm': 500, 'tpm': 200000}}")
    check_names(given, LIMITS, "limit", "of 'simulated'")
    rpm, tpm = (None if given.get(name) is None else number(given[name], name, more=True) for name in ("rpm", "tpm"))
    flags = {name: given.get(name, True) for name in ("headers", "retry_after", "punish")}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name!r} in 'limits' of 'simulated' is {flag!r}; give true or false")
    return Limits(
        rpm=rpm,
        tpm=tpm,
        window=one_of(given.get("window", "bucket"), WINDOWS, "'window' in 'limits'"),
        period=number(given.get("period", 60.0), "period", more=True),
        burst=number(given.get("burst", 1.0), "burst", more=True),
        counted=one_of(given.get("counted", "used"), COUNTED, "'counted' in 'limits'"),
        **flags,
    )


def faults_of(given: Any) -> tuple[Fault, ...]:
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise TypeError(f"'faults' of 'simulated' is {given!r}; give a list of maps")
    found = tuple(map(fault_of, given))
    for moment in (0.0, *(fault.since for fault in found)):
        for url in {fault.url for fault in found}:
            rate = sum(fault.rate for fault in found if fault.since <= moment < fault.until and fault.url in url)
            if rate > 1 + 1e-9:
                raise ValueError(
                    f"'faults' of 'simulated' have rates of {rate:g} in sum at {moment:g} s; 1 is the most"
                )
    return found


def fault_of(given: Any) -> Fault:
    """A fault of ``{"status": 500, "rate": 0.01}`` or ``{"kind": "timeout", "rate": 0.01}``.

    >>> fault_of({"status": 500, "rate": 0.01})[:3], fault_of({"kind": "timeoutt", "rate": 1})
    Traceback (most recent call last):
    ValueError: unknown 'kind' of a fault of 'simulated', 'timeoutt': did you mean 'timeout'?
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"a fault of 'simulated' is {given!r}; give a map such as {{'status': 500, 'rate': 0.01}}")
    check_names(given, FAULT, "key", "of a fault of 'simulated'")
    if ("status" in given) == ("kind" in given):
        raise ValueError("a fault of 'simulated' has either a 'status' or a 'kind'")
    status = given.get("status", 0)
    if "status" in given and (type(status) is not int or not 300 <= status < 600):
        raise ValueError(f"'status' of a fault of 'simulated' is {status!r}; give one from 300 to 599")
    headers = given.get("headers") or {}
    if not isinstance(headers, Mapping):
        raise TypeError(f"'headers' of a fault of 'simulated' are {headers!r}; give a map of texts")
    rate = number(given.get("rate", 1.0), "rate")
    if rate > 1:
        raise ValueError(f"'rate' of a fault of 'simulated' is {rate!r}; give a number from 0 to 1")
    return Fault(
        status,
        one_of(given["kind"], KINDS, "'kind' of a fault") if "kind" in given else "status",
        rate,
        number(given.get("from", 0.0), "from"),
        math.inf if given.get("until") is None else number(given["until"], "until"),
        None if given.get("seconds") is None else number(given["seconds"], "seconds"),
        {str(name).lower(): str(value) for name, value in headers.items()},
        given.get("code"),
        str(given.get("message") or (f"the simulated server answers {status}" if status else "a simulated fault")),
        str(given.get("url", "")),
    )


def draw_of(given: Any, name: str) -> Draw:
    """A function of a source of chance to a number, from its distribution.

    A number is always that one; ``{"median", "p99"}`` is a lognormal distribution; of a list, or ``{"samples": list}``,
    each number is as likely; ``{"uniform": [low, high]}`` is what it says.

    >>> [draw_of(given, "latency")(Random(1)) for given in (2, {"uniform": [3, 3]}, [4, 4])]
    [2.0, 3.0, 4.0]
    """
    if isinstance(given, Mapping):
        check_names(given, ("median", "p99", "uniform", "samples"), "key", f"of {name!r} of 'simulated'")
        if given.keys() == {"median", "p99"}:
            median, high = (number(given[key], key, more=True) for key in ("median", "p99"))
            if high < median:
                raise ValueError(f"{name!r} of 'simulated' has a p99 below its median")
            return partial(lognormal, math.log(median), math.log(high / median) / P99)
        if given.keys() == {"uniform"} and is_list(given["uniform"]) and len(given["uniform"]) == 2:
            low, high = (number(value, name) for value in given["uniform"])
            if low > high:
                raise ValueError(f"{name!r} of 'simulated' is uniform from {low:g} down to {high:g}")
            return lambda chance: chance.uniform(low, high)
        given = given.get("samples") if given.keys() == {"samples"} else None
    if is_list(given) and given:
        samples = tuple(number(value, name) for value in given)
        return lambda chance: chance.choice(samples)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        ways = '{"median": 1.2, "p99": 8}, {"uniform": [1, 2]} or a list of numbers'
        raise ValueError(f"{name!r} of 'simulated' is no distribution; give a number, {ways}")
    value = number(given, name)
    return lambda chance: value


def lognormal(mu: float, sigma: float, chance: Random) -> float:
    return math.exp(mu + sigma * chance.gauss(0.0, 1.0))


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def number(value: Any, name: str, *, more: bool = False) -> float:
    """A finite number of 0 or more, or of ``more`` than 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name!r} of 'simulated' is {value!r}; give a number")
    if not (0 <= value < math.inf) or (more and value == 0):
        raise ValueError(f"{name!r} of 'simulated' is {value!r}; give a number {'greater than 0' if more else '>= 0'}")
    return float(value)


def one_of(value: Any, known: Sequence[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"unknown {what} of 'simulated', {value!r}{nearest(value, known)}")
    return str(value)


def check_names(given: Mapping[str, Any], known: Sequence[str], what: str, where: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r} {where}{nearest(name, known)}")
