"""Where the boxes come from."""

from regio.proposals.anchors import Anchors
from regio.proposals.network import ProposalNetwork
from regio.proposals.rpn import RPN, ProposalFilter

__all__ = ["RPN", "Anchors", "ProposalFilter", "ProposalNetwork"]
