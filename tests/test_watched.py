"""Both tiers watch files by the same code, to the letter, as there is no third package for it; logs alike."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_both_tiers_have_the_same() -> None:
    gateway = (ROOT / "gateway/retouch_gateway/watched.py").read_text()
    assert gateway == (ROOT / "server/retouch_server/watched.py").read_text()
