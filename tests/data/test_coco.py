"""The COCO reader: values by hand, real files, and every rule for doubtful input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest_data import coco_source
