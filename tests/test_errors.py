"""Failures as data: categories, the server's words, waits, and the one exception."""

from __future__ import annotations

import copy
import json
import math
import pickle
import time
from email.utils import format_datetime, formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfn.errors import (
    CATEGORIES,
    MESSAGE_CHARACTERS,
    RETRYABLE,
    ChatError,
    category_of,
    epoch_of,
    error_map,
    failure,
    request_id_of,
    retry_after_of,
    wire_error,
    words_of,
)

NINE = {
    "unavailable",
    "interrupted",
    "busy",
    "incorrect",
    "forbidden",
    "unsupported",
    "not_found",
    "conflict",
    "fault",
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("category", "statuses"),
    [
        ("unavailable", [502, 504]),
        ("interrupted", [408]),
        ("busy", [429, 503]),
        ("fault", [500, 505, 507, 520, 529, 599, 200, 204, 206, 100, 103, 0]),
        ("conflict", [409]),
        ("incorrect", [400, 402, 406, 410, 413, 415, 418, 422, 431, 300, 302, 304, 307]),
        ("forbidden", [401, 403]),
        ("not_found", [404]),
        ("unsupported", [405, 501]),
    ],
)
def test_each_status_has_its_category(category: str, statuses: list[int]) -> None:
    assert {category_of(status, {}) for status in statuses} == {category}


def test_what_may_pass_is_retryable_and_nothing_else() -> None:
    assert {"unavailable", "interrupted", "busy", "fault", "conflict"} == RETRYABLE
    assert {"incorrect", "forbidden", "not_found", "unsupported"} == NINE - RETRYABLE
    assert set(CATEGORIES.values()) <= NINE


@settings(deadline=None)
@given(st.integers(0, 999), st.dictionaries(st.sampled_from(["code", "type", "message"]), JSON))
def test_every_status_and_body_has_one_of_the_nine_categories(status: int, wire: dict[str, Any]) -> None:
    assert category_of(status, wire) in NINE


@pytest.mark.parametrize("status", [200, 400, 402, 403, 429, 500])
@pytest.mark.parametrize("member", ["code", "type"])
def test_exhausted_quota_is_forbidden_whatever_the_status(status: int, member: str) -> None:
    assert category_of(status, {member: "insufficient_quota"}) == "forbidden"


@pytest.mark.parametrize(
    ("code", "category"),
    [
        (429, "busy"),
        ("429", "busy"),
        (401, "forbidden"),
        (502, "unavailable"),
        (599, "fault"),
        ("٤٢٩", "fault"),
        ("0429", "fault"),
        ("429 ", "fault"),
        ("9" * 5_000, "fault"),
        (-429, "fault"),
        (200, "fault"),
        (399, "fault"),
        (600, "fault"),
        (True, "fault"),
        (429.0, "fault"),
        (None, "fault"),
        ([429], "fault"),
        ("rate_limit", "fault"),
    ],
)
def test_the_status_in_the_body_of_a_success_counts_if_it_is_one(code: Any, category: str) -> None:
    assert category_of(200, {"code": code}) == category
    assert category_of(404, {"code": code}) == "not_found"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no such model", "code": "m"}}, "no such model"),
        ({"error": "no such model"}, "no such model"),
        ({"error": {"error": {"message": "inner"}}}, "inner"),
        ({"message": "plain message"}, "plain message"),
        ({"error": None, "message": "beside it"}, "beside it"),
        ({"error": {}, "message": "beside it"}, "beside it"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body"], "msg": "a"}, {"msg": "b"}, {}, None]}, "a; b"),
        ({"errors": ["a", {"message": "b"}]}, "a; b"),
        ({"Message": "from a gateway"}, "from a gateway"),
        ({"title": "Bad Request", "status": 400}, "Bad Request"),
        ({"status": 400, "reason": "odd", "more": [1]}, "status: 400, reason: odd"),
        ([{"error": {"code": 404, "message": "Gemini's"}}], "Gemini's"),
        ("  plain text\n", "plain text"),
        ("a < b and c > d", "a < b and c > d"),
        (
            "<!DOCTYPE html><html><head><title>502</title><style>p{}</style></head><body>"  # noqa: ISC004  # one page
            "<script>x<y</script><p>Bad&nbsp;Gateway &amp; more</p></body></html>",
            "502 Bad Gateway & more",
        ),
        (" <HTML><H1>Nope</H1>", "Nope"),
        ("", ""),
        (None, ""),
        (5, ""),
        ([], ""),
        ({}, ""),
    ],
)
def test_the_servers_words_are_found_in_every_form(body: Any, words: str) -> None:
    assert words_of(body) == words


@settings(deadline=None)
@given(JSON)
def test_words_and_error_maps_exist_for_every_body(body: Any) -> None:
    error = error_map(400, {}, body)
    assert isinstance(words_of(body), str)
    assert 0 < len(error["message"]) <= MESSAGE_CHARACTERS
    assert error["status"] == 400
    assert error["category"] in NINE
    assert json.loads(json.dumps(error)) == error
    assert error.get("body") == (body if isinstance(body, (dict, list)) else None)


@pytest.mark.parametrize("depth", [10, 100, 900])
def test_depth_is_bounded(depth: int) -> None:
    listed: Any = "words"
    mapped: Any = "words"
    for _ in range(depth):
        listed, mapped = [listed], {"error": mapped}
    for body in (listed, mapped):
        assert words_of(body) == ("words" if depth == 10 else "")
        assert error_map(500, {}, body)["category"] == "fault"


@pytest.mark.parametrize(
    ("body", "wire"),
    [
        ({"error": {"code": "c"}, "code": "outer"}, {"code": "c"}),
        ({"error": "words", "code": "outer"}, {"error": "words", "code": "outer"}),
        ([[{"error": {"code": "c"}}]], {"code": "c"}),
        ([], {}),
        ("text", {}),
        (None, {}),
    ],
)
def test_the_wires_error_is_the_innermost_map(body: Any, wire: Any) -> None:
    assert wire_error(body) == wire


def test_an_error_map_holds_what_the_wire_says() -> None:
    body = {"error": {"message": "m" * 5_000, "type": "t", "code": 7, "param": ["messages"], "more": 1}, "extra": 2}
    headers = {"x-request-id": "r", "x-should-retry": "FALSE", "retry-after": "3"}
    assert error_map(429, headers, body) == {
        "category": "busy",
        "message": "m" * MESSAGE_CHARACTERS,
        "status": 429,
        "type": "t",
        "code": 7,
        "param": "['messages']",
        "body": body,
        "retry_after": 3.0,
        "should_retry": False,
        "request_id": "r",
    }
    bare = error_map(500, {}, "")
    assert bare["message"] == "HTTP status 500 without a word"
    assert bare.keys() == {"category", "message", "status", "type", "code", "param"}


@pytest.mark.parametrize(
    ("value", "found"), [("true", True), ("True", True), ("false", False), ("yes", None), ("", None)]
)
def test_the_servers_own_word_on_retrying_is_kept_if_it_is_one(value: str, found: bool | None) -> None:
    assert error_map(500, {"x-should-retry": value}, "").get("should_retry") is found


def test_a_classifier_of_ones_own_replaces_the_table() -> None:
    seen = []

    def classify(status: int, wire: Any) -> Any:
        seen.append((status, wire))
        return "conflict"

    assert error_map(404, {}, {"error": {"code": "c"}}, classify)["category"] == "conflict"
    assert seen == [(404, {"code": "c"})]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "120s"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "0x10"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "99999"}, 99999.0),
        ({"retry-after": "9" * 30}, 1e15),
        ({"retry-after": "9" * 5_000}, 1e15),
        ({"retry-after-ms": "9" * 5_000}, 1e15),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250.5"}, 0.2505),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "x-ms-retry-after-ms": "1", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "-5", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "x", "x-ms-retry-after-ms": "2000"}, 2.0),
    ],
)
def test_a_wait_is_read_in_each_of_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(headers, 0.0) == seconds


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("after", "sent", "seconds"),
    [
        (formatdate(NOW + 30, usegmt=True), None, 30.0),
        (formatdate(NOW + 30, usegmt=True), formatdate(NOW + 10, usegmt=True), 20.0),
        (formatdate(NOW + 30, usegmt=True), "rubbish", 30.0),
        (formatdate(NOW + 30, usegmt=True), formatdate(NOW + 99, usegmt=True), 0.0),
        (formatdate(NOW - 30, usegmt=True), None, 0.0),
        (time.asctime(time.gmtime(NOW + 30)), None, 30.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, 253402300799.0 - NOW),
        ("Fri, 99 Foo 2023 00:00:00 GMT", None, None),
        ("Fri, 31 Dec 99999999999 23:59:59 GMT", None, None),
    ],
)
def test_a_wait_may_be_a_date_by_the_servers_clock_or_ours(after: str, sent: str | None, seconds: float | None) -> None:
    assert retry_after_of({"retry-after": after, **({} if sent is None else {"date": sent})}, NOW) == seconds


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_wait_is_finite_and_not_negative_or_none(ms: str, after: str, date: str) -> None:
    wait = retry_after_of({"retry-after-ms": ms, "retry-after": after, "date": date}, NOW)
    assert wait is None or (math.isfinite(wait) and wait >= 0)


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000))
def test_a_date_is_read_as_it_was_meant(epoch: int) -> None:
    assert epoch_of(formatdate(epoch, usegmt=True)) == epoch
    assert epoch_of(formatdate(epoch)) == epoch


def test_a_date_without_a_zone_is_in_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        for date in ("Thu Jan  1 00:00:10 1970", "Thu, 01 Jan 1970 00:00:10 -0000", "Thu, 01 Jan 1970 00:00:10"):
            assert epoch_of(date) == 10.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_date_is_none() -> None:
    from datetime import UTC, datetime

    assert epoch_of(format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)) == 1577836800.0
    for date in ("", "x", "1", "Thu, 32 Jan 1970 00:00:10 GMT", "Thu, 01 Jan 1970 00:00:10 +" + "9" * 30, "\x00"):
        assert epoch_of(date) is None


def test_the_request_id_has_three_names_in_order() -> None:
    headers = {"x-request-id": "a", "apim-request-id": "b", "x-ms-request-id": "c"}
    for name in list(headers):
        assert request_id_of(headers) == headers[name]
        del headers[name]
    assert request_id_of({}) is None
    assert request_id_of({"x-request-id": "", "x-ms-request-id": "c"}) == "c"


def test_a_failure_is_a_response_map_that_never_arrived() -> None:
    response = failure("interrupted", "m" * 5_000)
    assert (response["status"], response["headers"], response["body"]) == (0, {}, None)
    assert response["error"] == {"category": "interrupted", "message": "m" * MESSAGE_CHARACTERS, "status": 0}


ERROR: Any = {"category": "busy", "message": "slow down", "status": 429, "partial": {"choices": [{"index": 0}]}}


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy]
    + [lambda exc, p=p: pickle.loads(pickle.dumps(exc, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)],
)
def test_a_chat_error_survives_every_way_of_copying(copied: Any) -> None:
    found = copied(ChatError(ERROR))
    assert type(found) is ChatError
    assert found.error == ERROR
    assert str(found) == "busy (429): slow down"


def test_a_chat_error_says_its_status_if_one_arrived() -> None:
    assert str(ChatError({"category": "unavailable", "message": "refused", "status": 0})) == "unavailable: refused"
    assert str(ChatError({"category": "fault", "message": "broke"})) == "fault: broke"
