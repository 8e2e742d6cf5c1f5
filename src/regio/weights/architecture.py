"""What a published detector is made of."""

from __future__ import annotations

from typing import Protocol

from regio.detector import TwoStageDetector

__all__ = ["Architecture"]


class Architecture(Protocol):
    """masks: whether the detector has a mask head."""

    @property
    def masks(self) -> bool: ...

    def build(self, num_classes: int) -> TwoStageDetector:
        """The detector for so many classes, the background among them, with random weights."""
        ...
