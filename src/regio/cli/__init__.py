"""The command `regio`."""

from regio.cli.main import main

__all__ = ["main"]
