"""Errors with a meaning of their own, apart so that catching one imports nothing else."""

__all__ = ["Interrupted", "NonFiniteLoss", "ProcessFailed"]


class NonFiniteLoss(FloatingPointError):
    """A loss or the gradient is NaN or infinite; the message names which, the step and the images of that batch."""


class Interrupted(Exception):
    """The run was asked to stop and has saved its whole state; the message says where."""


class ProcessFailed(Exception):
    """Another process of this training failed; the error itself was raised there."""
