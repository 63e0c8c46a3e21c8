"""Real clients, by the gateway's own address alone: each cell of the matrix is a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import checks, matrix
from tests.conformance.conftest import World, need

API = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("client", "scenario"), matrix.CELLS)
async def test_it_sees_what_openai_would_have_shown(
    world: World, client: str, scenario: str
) -> None:
    need(client)
    saw = (await world.saw(client))[scenario]
    await getattr(checks, scenario)(checks.Seen(client, saw, world.calls(client, scenario)))


def test_the_docs_have_the_matrix() -> None:
    told = matrix.START + matrix.table() + matrix.END
    assert told in API.read_text(), "run scripts/conformance-doc and commit what it changes"
