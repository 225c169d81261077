"""Data against a schema of ``lint_rules``: all that does not fit it, each with its rule, its level and its path.

A schema becomes a function, once; that looks at a value in about the time that it takes to walk through it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

from chatfn.lint_rules import SCHEMAS
from chatfn.options import nearest
from chatfn.plain import without

Path = tuple[str | int, ...]

KINDS = {  # of JSON, in words
    "object": "an object", "array": "an array", "string": "a string", "boolean": "a boolean", "integer": "an integer",
    "number": "a number", "null": "null",
}  # fmt: skip
EXACTLY = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", type(None): "null"}
MAPS = (dict, Mapping)  # dict first: it is found sooner
BYTES = (bytes, bytearray, memoryview)
LONGEST_SHOWN = 80  # characters of a value or a name
MOST = 1_000  # findings of one value


class Found(NamedTuple):
    """What does not fit: by which rule, how bad, where, in words, and which schema of the document says so."""

    rule: str
    level: str
    path: Path
    message: str
    schema: str


Check = Callable[[Any], Sequence[Found]]
Schema = Mapping[str, Any]
NOTHING: tuple[Found, ...] = ()


@cache
def check_of(name: str) -> Check:
    """A function of a value to what does not fit the schema of that name.

    >>> check_of("Verbosity")("loud")[0].message
    "is 'loud'; the document knows 'low', 'medium', 'high'"
    """
    return made(SCHEMAS[name], name)


def made(schema: Schema, name: str) -> Check:
    """The check of a schema that stands in the one of that ``name``."""
    if "ref" in schema:
        check = check_of(schema["ref"])
    elif "any" in schema:
        check = alternatives(schema["any"], name)
    else:
        check = MAKERS[schema["type"]](schema, name)
    if "deprecated" in schema:
        check = partial(deprecated, check, schema["deprecated"], name)
    return partial(unless_null, check) if schema.get("nullable") else check


def unless_null(check: Check, value: Any) -> Sequence[Found]:
    return NOTHING if value is None else check(value)


def deprecated(check: Check, words: str, name: str, value: Any) -> Sequence[Found]:
    old = Found("deprecated", "warning", (), f"is deprecated{': ' * bool(words)}{words.rstrip('.')}", name)
    return [old, *check(value)]


def kind_of(value: Any) -> str:
    """The kind of JSON that a value is; of what is none, that."""
    kind = EXACTLY.get(type(value))
    if kind is not None:
        return kind
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, Sequence) and not isinstance(value, (str, *BYTES)):
        return "array"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    strange = f"{type(value).__name__}, which has no form in JSON"
    return next((EXACTLY[known] for known in (str, int) if isinstance(value, known)), strange)


def kinds_of(schema: Schema) -> set[str]:
    """The kinds of JSON that may fit a schema."""
    if "ref" in schema:
        return kinds_of(SCHEMAS[schema["ref"]])
    if "any" in schema:
        return set().union(*map(kinds_of, schema["any"]))
    return {"integer", "number"} if schema["type"] == "number" else {schema["type"]}


def wrong_kind(value: Any, kinds: Iterable[str], name: str) -> Sequence[Found]:
    """What is to be said of a value of another kind.  Null is seldom refused where a member may be left out."""
    got, wanted = kind_of(value), " or ".join(KINDS[kind] for kind in KINDS if kind in kinds)
    if got == "null":
        return [Found("null", "warning", (), f"is null; leave it out, or give {wanted}", name)]
    return [Found("type", "error", (), f"is {KINDS.get(got, got)}; give {wanted}", name)]


def name_of(key: Any) -> str:
    return key[:LONGEST_SHOWN] if isinstance(key, str) else f"({type(key).__name__})"


def shown(value: float) -> str:
    """A number in words; Python refuses to write an integer of very many digits."""
    return repr(value) if isinstance(value, float) or value.bit_length() < 128 else "out of all bounds"


def below(part: str | int, found: Iterable[Found]) -> list[Found]:
    return [each._replace(path=(part, *each.path)) for each in found]


def alternatives(schemas: Sequence[Schema], name: str) -> Check:
    """A check that looks for the alternative that was meant: by the kind of the value, and of an object by its tag."""
    kinds = {kind: [each for each in schemas if kind in kinds_of(each)] for each in schemas for kind in kinds_of(each)}
    checks = {kind: [made(each, name) for each in several] for kind, several in kinds.items()}
    if len(checks.get("object", ())) > 1:
        checks["object"] = [tagged(kinds["object"], name)]

    def check(value: Any) -> Sequence[Found]:
        several = checks.get(kind_of(value))
        if several is None:
            return wrong_kind(value, kinds, name)
        if len(several) == 1:
            return several[0](value)
        return min((each(value) for each in several), key=len)

    return check


def tagged(schemas: Sequence[Schema], name: str) -> Check:
    """A check of objects that are told apart by the one value of a property, such as ``role`` or ``type``."""
    objects = [SCHEMAS[each["ref"]] if "ref" in each else each for each in schemas]
    tag = next(tag for tag in objects[0]["properties"] if all(len(tags_in(each, tag)) == 1 for each in objects))
    checks = {tags_in(each, tag)[0]: made(schema, name) for each, schema in zip(objects, schemas, strict=True)}

    def check(value: Any) -> Sequence[Found]:
        given = value.get(tag)
        if isinstance(given, str) and given in checks:
            return checks[given](value)
        if tag in value:
            return below(tag, [unlisted(given, tuple(checks), name)])
        return [Found("required", "error", (tag,), f"is missing; the document knows {listed(checks)}", name)]

    return check


def tags_in(schema: Schema, tag: str) -> Sequence[str]:
    found: Sequence[str] = schema["properties"].get(tag, {}).get("enum", ())
    return found


def listed(known: Iterable[str]) -> str:
    return ", ".join(map(repr, known))


def unlisted(value: Any, known: tuple[str, ...], name: str) -> Found:
    given = repr(value[:LONGEST_SHOWN]) if isinstance(value, str) else KINDS.get(kind_of(value), kind_of(value))
    return Found("enum", "error", (), f"is {given}; the document knows {listed(known)}", name)


@lru_cache(1_024)
def unknown(key: str, known: tuple[str, ...], closed: bool, name: str) -> Found:
    """What is said of a member that the document does not know."""
    level = "error" if closed else "warning"
    return Found("unknown", level, (key,), f"is not in the document{nearest(key, known)}", name)


def objects(schema: Schema, name: str) -> Check:
    checks = {key: made(each, name) for key, each in schema.get("properties", {}).items()}
    known, required, more = tuple(checks), schema.get("required", ()), schema.get("more")
    most, keys = schema.get("maxProperties"), strings(schema.get("keys", {}), name)
    if more is True:
        return lambda value: NOTHING if kind_of(value) == "object" else wrong_kind(value, ["object"], name)
    others = made(more, name) if more else None

    def check(value: Any) -> Sequence[Found]:
        if kind_of(value) != "object":
            return wrong_kind(value, ["object"], name)
        found: list[Found] = []
        for key, item in value.items():
            each = checks.get(key, others)
            if each is None:
                found.append(unknown(name_of(key), known, more is False, name))
            elif got := each(item):
                found += below(key, got)
            if others is not None:
                found += below(name_of(key), keys(key))
            if len(found) >= MOST:
                break
        if most is not None and len(value) > most:
            found.append(Found("length", "error", (), f"has {len(value):,} members; at most {most} may be", name))
        found += [Found("required", "error", (key,), "is missing", name) for key in required if key not in value]
        return found

    return check


def arrays(schema: Schema, name: str) -> Check:
    items = schema["items"]
    if "deprecated" in schema and "ref" in items:  # said once is enough
        items = without(SCHEMAS[items["ref"]], "deprecated")
    each, least, most = made(items, name), schema.get("minItems", 0), schema.get("maxItems")

    def check(value: Any) -> Sequence[Found]:
        if kind_of(value) != "array":
            return wrong_kind(value, ["array"], name)
        found: list[Found] = []
        for place, item in enumerate(value):
            if got := each(item):
                found += below(place, got)
                if len(found) >= MOST:
                    break
        if len(value) < least or (most is not None and len(value) > most):
            end = f"at least {least} is needed" if len(value) < least else f"at most {most} may be"
            found.append(Found("length", "error", (), f"has {len(value):,} items; {end}", name))
        return found

    return check


def strings(schema: Schema, name: str) -> Check:
    known, most = tuple(schema.get("enum", ())), schema.get("maxLength")
    pattern = re.compile(schema["pattern"]) if "pattern" in schema else None
    if not known and most is None and pattern is None:
        return lambda value: NOTHING if isinstance(value, str) else wrong_kind(value, ["string"], name)

    def check(value: Any) -> Sequence[Found]:
        if not isinstance(value, str):
            return wrong_kind(value, ["string"], name)
        if known and value not in known:
            return [unlisted(value, known, name)]
        if most is not None and len(value) > most:
            return [Found("length", "error", (), f"has {len(value):,} characters; at most {most} may be", name)]
        if pattern is not None and pattern.fullmatch(value) is None:
            return [Found("pattern", "error", (), f"has characters that are not of {pattern.pattern}", name)]
        return NOTHING

    return check


def numbers(schema: Schema, name: str) -> Check:
    kinds, least, most = kinds_of(schema), schema.get("minimum"), schema.get("maximum")

    def check(value: Any) -> Sequence[Found]:
        if kind_of(value) not in kinds:
            return wrong_kind(value, [schema["type"]], name)
        if least is not None and not least <= value <= most:  # not a number is in no range
            return [Found("range", "error", (), f"is {shown(value)}; from {least:,} to {most:,} it may be", name)]
        return NOTHING

    return check


def booleans(schema: Schema, name: str) -> Check:
    return lambda value: NOTHING if isinstance(value, bool) else wrong_kind(value, ["boolean"], name)


MAKERS: dict[str, Callable[[Schema, str], Check]] = {
    "object": objects, "array": arrays, "string": strings, "integer": numbers, "number": numbers, "boolean": booleans,
}  # fmt: skip
