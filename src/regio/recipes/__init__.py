"""How the systems are trained: in one piece, or in stages as their papers do."""

from regio.recipes.alternating import Alternating
from regio.recipes.classifier_first import ClassifierFirst
from regio.recipes.fitted_head import FittedHead
from regio.recipes.joint import Joint, require_box_gradients
from regio.recipes.staged_run import Recipe, StagedRun

__all__ = ["Alternating", "ClassifierFirst", "FittedHead", "Joint", "Recipe", "StagedRun", "require_box_gradients"]
