"""Where the boxes come from: a proposal network inside a detector, or a method that finds them for one from outside."""

from regio.proposals.anchors import Anchors
from regio.proposals.class_aware import ClassAwareRPN
from regio.proposals.files import propose
from regio.proposals.grid import Grid
from regio.proposals.method import ProposalMethod, method_settings
from regio.proposals.network import ProposalNetwork
from regio.proposals.rpn import RPN, ProposalFilter
from regio.proposals.selective_search import SelectiveSearch

__all__ = [
    "RPN",
    "Anchors",
    "ClassAwareRPN",
    "Grid",
    "ProposalFilter",
    "ProposalMethod",
    "ProposalNetwork",
    "SelectiveSearch",
    "method_settings",
    "propose",
]
