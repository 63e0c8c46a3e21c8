"""docs/models.md says what the server's own tables say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from retouch_server.engine.tables import TABLES
from retouch_server.families import FAMILIES, OWN_SIZE

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs/models.md"


def test_the_table_of_models_is_current(tmp_path: Path) -> None:
    fresh = Path(shutil.copy(DOC, tmp_path))
    subprocess.run([sys.executable, ROOT / "scripts/models-doc", fresh], check=True)
    assert DOC.read_text() == fresh.read_text(), "run scripts/models-doc and commit what it changes"


def test_every_checkpoint_and_pipeline_is_in_it() -> None:
    words = set(re.findall(r"\w+", DOC.read_text()))
    for checkpoint, family in FAMILIES.items():
        names = {checkpoint, family.edit, family.masked, family.strength} - {None}
        assert {str(name).removesuffix("Pipeline") for name in names} <= words
    assert {name.removesuffix("Pipeline") for name in OWN_SIZE} <= words


def test_the_denoisers_that_share_are_those_that_have_a_table() -> None:
    listed = re.findall(r"^\| `(\w+Model)` \|", DOC.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(TABLES)
