"""The JSON schemas of the OCI runtime specification, from ``tests/data``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import referencing
import referencing.jsonschema

FOLDER = Path(__file__).parents[1] / "data/runtime-spec"
BASE = "https://example.org/runtime-spec/"


def validator(name: str) -> jsonschema.Draft4Validator:
    """Return what validates documents by the schema in file *name*."""
    resources = [
        (
            BASE + path.name,
            referencing.jsonschema.DRAFT4.create_resource(json.loads(path.read_text())),
        )
        for path in FOLDER.glob("*.json")
    ]
    registry = referencing.Registry().with_resources(resources)
    return jsonschema.Draft4Validator({"$ref": BASE + name}, registry=registry)
