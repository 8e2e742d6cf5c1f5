"""Configurations as text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["as_yaml", "read_yaml"]


class _Loader(yaml.SafeLoader):
    """YAML in which 6e-4 is a number, as in Python and JSON, and not a word."""


class _Dumper(yaml.SafeDumper):
    """YAML with each list in one line."""


for each in (_Loader, _Dumper):  # the latter, so that a word such as "6e4" is written with quotes
    each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, True))


def as_yaml(configuration: Mapping[str, Any]) -> str:
    """`configuration` in YAML, as people read it and as `config.yaml` holds it."""
    return yaml.dump(json.loads(json.dumps(configuration)), Dumper=_Dumper, sort_keys=False)


def read_yaml(text: str) -> Any:
    """What `text` says. Raises yaml.YAMLError where it is no YAML."""
    return yaml.load(text, _Loader)
