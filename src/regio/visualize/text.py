"""Names of people's own in figures."""

__all__ = ["literal"]


def literal(text: str) -> str:
    """`text` as matplotlib shows it whole: a dollar sign would begin its mathematical mode, and what begins with an
    underscore is left out of legends."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
