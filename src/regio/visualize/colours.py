"""A colour for each class: the same one in every picture and plot."""

from __future__ import annotations

__all__ = ["Colour", "class_colour", "ink_on"]

Colour = tuple[int, int, int]
"""Red, green, blue in 0 .. 255."""

# The first eight by hand. Each further one is, of 1219 colours light and vivid enough for photos, the one farthest in
# OKLab from all before it, the distance being the least of those in normal, protanopic and deuteranopic vision
# (simulated as in Machado et al. 2009).
_PALETTE = (
    "FF4D4D 00A5FF FFC400 00C47A C264FF FF7AC6 FF8A1F 7A4DFF 905079 82EAFC "
    "1B6AB6 72F896 BA2D1F ACB8FE 2C937C 768B09 AA77AF F7A3AD BC28A4 6B76D2 "
    "90D378 8F12DB 53B3D1 D26475 DC32D5 A75C51 99EDC3 4AAC94 73C59E E0DE69 "
    "F5AE4B 725B9A 2EE8D8 D68AA9 B97D4A 66CFE1 E56AF1 B72859 E4275C E25D1D "
    "CF985E B57DD6 DC91E3 B25CA0 974DBF 75E6A4 6D2FF1 AEAA2E 537535 B4561A "
    "E79C7E FEB98C ED51BD 2CF343 9E6DE7 BC7290 C78B09 A45A72 CD8366 80D8FE "
    "6DD3C0 8C8CEC 73CB51 2370DB C71D8B EC7C97 91B1F1 A122AE A262B6 B4098B "
    "C37FAA EBB5F0 72FC29 50F5DB 3D79AB 47872D 957EC0 85E0BE A14FE5 C94893 "
)


def class_colour(label: int) -> Colour:
    """The colour of class `label`, 1 .. C. Labels 80 apart share one; 0, the background, is grey."""
    if label == 0:
        return 128, 128, 128
    code = _PALETTE.split()[(label - 1) % 80]
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)


def ink_on(background: Colour) -> Colour:
    """Black or white, whichever has the greater contrast on `background` (WCAG 2.1, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance + 0.05 > (0.0525) ** 0.5 else (255, 255, 255)
