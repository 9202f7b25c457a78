"""What tests look for in a report's text."""


def line(text: str, start: str) -> str:
    """Return the one line that begins with `start`."""
    (found,) = [each for each in text.splitlines() if each.startswith(start)]
    return found
