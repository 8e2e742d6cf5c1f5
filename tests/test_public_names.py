"""The names of `regio` itself."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import regio


@pytest.mark.parametrize("name", regio.__all__)
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    value = getattr(regio, name)
    assert name in dir(regio)
    if name != "__version__":
        assert value is getattr(import_module(regio._MODULES[name]), name)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(regio.__file__).read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("regio.")
        for alias in node.names
    }
    assert typed == regio._MODULES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'regio' has no attribute 'RoiAlign'"):
        _ = regio.RoiAlign


def test_import_of_regio_imports_nothing_heavy() -> None:
    program = "import regio, sys; dir(regio); print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
