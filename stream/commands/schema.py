"""`facetstream schema`: the JSON Schemas of what may be sent."""

import json

import click
from pydantic import TypeAdapter

from stream.events import EVENT_MODELS, SCHEMA_VERSION, Event, Item

MODELS: dict[str, type[Event | Item]] = {**EVENT_MODELS, "item": Item}


@click.command("schema")
@click.argument("name", required=False, type=click.Choice(list(MODELS)))
def command(name: str | None) -> None:
    """Print the JSON Schema of one kind of record, or one object with all of them."""
    schemas = {kind: _schema(kind) for kind in MODELS}
    click.echo(json.dumps(schemas[name] if name else schemas, indent=2))


def _schema(kind: str) -> dict[str, object]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"facetstream/{kind}/{SCHEMA_VERSION}",
        **TypeAdapter(MODELS[kind]).json_schema(),
    }
