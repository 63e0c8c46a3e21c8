"""Words that mean something to somebody, one a line, with Python's escapes: of JSON's values, of heads and paths."""

from pathlib import Path


def words(name: str) -> list[bytes]:
    """Those of `name`.txt."""
    lines = Path(__file__).with_name(f"{name}.txt").read_text().splitlines()
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in lines]
