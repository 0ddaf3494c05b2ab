"""`facetstream config`: the settings in force."""

import json
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from stream.settings import MASK, Settings, load, masked, variable


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Print every setting: its variable, value and meaning. Secrets are masked."""
    rows = _rows(load())
    if as_json:
        click.echo(json.dumps({row.pop("variable"): row for row in rows}, indent=2))
    else:
        click.echo("\n".join(map(_line, rows)))


def _rows(settings: Settings) -> list[dict[str, Any]]:
    return [
        {
            "variable": variable(name),
            "value": _shown(name, getattr(settings, name)),
            "default": getattr(settings, name) == field.default,
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]


def _shown(name: str, value: Any) -> Any:
    match value:
        case SecretStr():
            return MASK
        case str() if name.endswith("_url"):
            return masked(value)
        case Path():
            return str(value)
    return value


def _line(row: dict[str, Any]) -> str:
    value = "" if row["value"] is None else row["value"]
    return f"{row['variable']:34} {value!s:28} {'' if row['default'] else 'set':4} {row['description']}"
