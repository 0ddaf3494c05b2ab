"""Protobuf's text format, as far as config.pbtxt needs it, without protobuf."""

import re
from collections.abc import Iterator
from typing import Any

from models.errors import BadInput

TOKEN = re.compile(r'\s+|#[^\n]*|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<mark>[{}\[\]:,;])|(?P<word>[^\s{}\[\]:,;"#]+)')

Message = dict[str, list[Any]]  # the values of every field: messages, strings, words (numbers and names, as written)


def parse(text: str) -> Message:
    """The fields of `text`, each a list, for any field may be repeated. Raises `BadInput` at what makes no sense."""
    tokens = [*_tokens(text), ("mark", "}"), ("mark", "")]
    message, end = _message(tokens, 0)
    if end != len(tokens) - 1:
        raise BadInput("a bracket is closed that none has opened")
    return message


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        found = TOKEN.match(text, place)
        if found is None:
            raise BadInput(f"line {text.count(chr(10), 0, place) + 1} cannot be read")
        place = found.end()
        if found.lastgroup is not None:
            yield found.lastgroup, found.group()


def _message(tokens: list[tuple[str, str]], place: int) -> tuple[Message, int]:
    """Up to and with the closing bracket."""
    fields: Message = {}
    while tokens[place] != ("mark", "}"):
        kind, name = tokens[place]
        if kind != "word":
            raise BadInput(f"a field's name is missing before {name or 'the end'}")
        values, place = _values(tokens, place + 1 + (tokens[place + 1] == ("mark", ":")))
        fields.setdefault(name, []).extend(values)
        place += tokens[place][1] in (",", ";")
    return fields, place + 1


def _values(tokens: list[tuple[str, str]], place: int) -> tuple[list[Any], int]:
    kind, token = tokens[place]
    if token == "[":
        values: list[Any] = []
        place += 1
        while tokens[place] != ("mark", "]"):
            found, place = _values(tokens, place)
            values += found
            place += tokens[place] == ("mark", ",")
        return values, place + 1
    if token == "{":
        message, place = _message(tokens, place + 1)
        return [message], place
    if kind == "mark":
        raise BadInput(f"a value is missing before {token or 'the end'}")
    return [token[1:-1] if kind == "text" else token], place + 1
