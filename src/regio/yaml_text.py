"""Configurations as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["as_yaml"]


class _Dumper(yaml.SafeDumper):
    """YAML with each list in one line."""


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, True))


def as_yaml(configuration: Mapping[str, Any]) -> str:
    """`configuration` in YAML, as people read it and as `config.yaml` holds it."""
    return yaml.dump(json.loads(json.dumps(configuration)), Dumper=_Dumper, sort_keys=False)
