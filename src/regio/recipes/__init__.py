"""How the systems are trained: in one piece, or in stages as their papers do."""

from regio.recipes.joint import Joint
from regio.recipes.staged_run import Recipe, StagedRun

__all__ = ["Joint", "Recipe", "StagedRun"]
