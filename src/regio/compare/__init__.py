"""Systems trained and measured on the same data, and a report that puts them side by side."""

from regio.compare.arms import Arm, make_arm, split_arms, system_in
from regio.compare.comparison import compare
from regio.compare.plan import Pace, Plan

__all__ = ["Arm", "Pace", "Plan", "compare", "make_arm", "split_arms", "system_in"]
