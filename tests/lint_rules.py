"""``chatfn/lint_rules.py`` made from the official document: ``python tests/lint_rules.py OPENAPI AZURE > chatfn/lint_rules.py``.

Kept of each schema of a chat request is what can be checked.  What the document says of a field in words alone, and a
keyword can say, is added by ``WORDS``, as long as the document says it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from textwrap import wrap
from typing import Any

LINE = 115
ROOT = "CreateChatCompletionRequest"
KEPT = ("enum", "minimum", "maximum", "minItems", "maxItems", "maxLength", "required")
NAME = {"pattern": "[a-zA-Z0-9_-]*", "maxLength": 64}
NAME_WORDS = "Must be a-z, A-Z, 0-9, or contain underscores and dashes, with a maximum length of 64."
WORDS: list[tuple[str, tuple[str, ...], str, dict[str, Any]]] = [  # schema, path in it, its words, their keywords
    ("Metadata", (), "Set of 16 key-value pairs", {"maxProperties": 16}),
    ("Metadata", (), "Keys are strings with a maximum length of 64 characters.", {"keys": {"maxLength": 64}}),
    ("Metadata", ("more",), "Values are strings with a maximum length of 512 characters.", {"maxLength": 512}),
    (ROOT, ("properties", "logit_bias", "more"), "an associated bias value from -100 to 100", {"minimum": -100, "maximum": 100}),
    ("ResponseFormatJsonSchema", ("properties", "json_schema", "properties", "name"), NAME_WORDS, NAME),
    ("FunctionObject", ("properties", "name"), NAME_WORDS, NAME),
    ("ChatCompletionFunctions", ("properties", "name"), NAME_WORDS, NAME),
    ("WebSearchLocation", ("properties", "country"), "The two-letter [ISO country code]", {"pattern": "[A-Za-z]{2}"}),
]  # fmt: skip


def flat(text: str) -> str:
    """A text of the document without its line breaks."""
    return " ".join(text.split())


def words_in(schema: Any) -> str:
    """All descriptions in a schema."""
    if isinstance(schema, list):
        return " ".join(map(words_in, schema))
    if not isinstance(schema, dict):
        return ""
    own = schema.get("description")
    inner = words_in([value for name, value in schema.items() if name != "example"])
    return f"{flat(own) if isinstance(own, str) else ''} {inner}"


def named(ref: str) -> str:
    return ref.rpartition("/")[2]


def compact(schema: Any, schemas: Any) -> dict[str, Any]:
    """A schema with the keywords that are checked: ``ref``, ``any``, ``more`` (what other properties are) and JSON
    Schema's own; an alternative null is ``nullable``."""
    if "$ref" in schema:
        return {"ref": named(schema["$ref"])}
    found: dict[str, Any] = {name: schema[name] for name in KEPT if schema.get(name)}
    found |= {name: schema[name] for name in ("minimum", "minItems") if schema.get(name) is not None}
    if schema.get("deprecated"):
        found["deprecated"] = replacement_in(words_in(schema))
    for part in schema.get("allOf", ()):
        inner = compact(part, schemas)
        inner = compact(schemas[inner["ref"]], schemas) if "ref" in inner else inner
        found["properties"] = found.get("properties", {}) | inner.pop("properties", {})
        found |= inner
    several = [compact(each, schemas) for key in ("anyOf", "oneOf") for each in schema.get(key, ())]
    nullable = schema.get("nullable") or any(
        each.pop("nullable", False) or each.get("type") == "null" for each in several
    )
    several = [each for each in several if each.get("type") != "null"]
    if len(several) == 1:
        found = several[0] | found
    elif several:
        found["any"] = [deeper for each in several for deeper in (each["any"] if set(each) == {"any"} else [each])]
    if "type" in schema:
        found["type"] = schema["type"]
    if "properties" in schema:
        found["properties"] = {name: compact(each, schemas) for name, each in schema["properties"].items()}
    if "items" in schema:
        found["items"] = compact(schema["items"], schemas)
    if "additionalProperties" in schema:
        more = schema["additionalProperties"]
        found["more"] = compact(more, schemas) if isinstance(more, dict) else more
    if nullable:
        found["nullable"] = True
    return found


def replacement_in(words: str) -> str:
    """The sentences that say what is deprecated, up to the one that names what stands in its place."""
    text = re.sub(r"\[(.+?)\]\(\S+?\)", r"\1", flat(words))
    sentences = [s for s in re.split(r"(?<=[.])\s+|, and ", text) if re.search("eprecated|replaced by|^Use ", s)]
    last = next((place for place, sentence in enumerate(sentences) if "`" in sentence), -1)
    return " ".join(sentences[: last + 1])


def refs_in(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(refs_in, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["ref"]} if isinstance(schema.get("ref"), str) else set()
    return own.union(*map(refs_in, schema.values()))


def rules_of(document: Any, azure: Any) -> dict[str, Any]:
    """All that the module holds."""
    schemas = document["components"]["schemas"]
    found: dict[str, Any] = {}
    wanted = [ROOT]
    while wanted:
        name = wanted.pop()
        found[name] = compact(schemas[name], schemas)
        wanted += sorted(refs_in(found[name]) - found.keys() - set(wanted), reverse=True)
    for name, path, words, keywords in WORDS:
        assert flat(words) in words_in(schemas[name]), words
        schema = found[name]
        for part in path:
            schema = schema[part]
        schema |= keywords
    versions = sorted({surface["api_version"] or "v1" for surface in azure["surfaces"].values()} | {"preview"})
    return {"VERSION": document["info"]["version"], "ROOT": ROOT, "AZURE_VERSIONS": tuple(versions), "SCHEMAS": found}


def module_of(rules: dict[str, Any]) -> str:
    """The module's text."""
    head = '''"""What the official OpenAPI document says of a chat request, as far as it can be checked; made by tests/lint_rules.py.

Of JSON Schema's keywords, with ``ref`` for the name of another schema, ``any`` for alternatives, ``more`` for what
other properties are, ``keys`` for what their names are, and ``deprecated`` with the document's words.
"""

from __future__ import annotations

from typing import Any

# fmt: off
'''
    types = {"VERSION": "str", "ROOT": "str", "AZURE_VERSIONS": "tuple[str, ...]", "SCHEMAS": "dict[str, Any]"}
    values = [f"{name}: {types[name]} = {shown(value)}" for name, value in rules.items()]
    return head + "\n".join(values) + "\n"


def shown(value: Any, depth: int = 0, before: int = 0) -> str:
    """A literal in lines that are not too long: in one if it fits, else an item a line."""
    line = json.dumps(value) if isinstance(value, str) else repr(value).replace("'", '"')
    if isinstance(value, (dict, list)) and depth + before + len(line) > LINE:
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        heads = [f'"{name}": ' if isinstance(value, dict) else "" for name, _ in pairs]
        texts = [head + shown(item, depth + 1, len(head)) for head, (_, item) in zip(heads, pairs, strict=True)]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            texts = wrap(", ".join(texts), LINE - depth, break_long_words=False, break_on_hyphens=False)
        inner = "".join(f"\n{' ' * (depth + 1)}{text.removesuffix(',')}," for text in texts)
        line = f"{{{inner}\n{' ' * depth}}}" if isinstance(value, dict) else f"[{inner}\n{' ' * depth}]"
    return line


if __name__ == "__main__":
    sys.stdout.write(module_of(rules_of(*(json.loads(Path(path).read_text()) for path in sys.argv[1:3]))))
