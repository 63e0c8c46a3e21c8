"""The workflow file: its shape, what it may do, and that what it runs is there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.images.dockerfile import ROOT, TIERS

FOLDER = ROOT / ".github/workflows"
JOB_KEYS = {
    "container", "env", "if", "name", "needs", "permissions", "runs-on", "steps", "strategy",
    "timeout-minutes",
}  # fmt: skip
STEP_KEYS = {"env", "id", "if", "name", "run", "uses", "with"}
# What a runner brings, or an action puts there; the rest must be in the repository.
TOOLS = {"helm": "azure/setup-helm", "sudo": None}
SHELL = {"for", "do", "done", "if", "then", "fi"}


def workflows() -> dict[str, Any]:
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.iterdir())}


def steps(workflow: Any) -> Iterator[tuple[str, Any]]:
    """Each step, with its job's name."""
    for name, job in workflow["jobs"].items():
        for step in job["steps"]:
            yield name, step


@pytest.fixture(params=workflows().items(), ids=lambda item: item[0])
def workflow(request: pytest.FixtureRequest) -> Any:
    return request.param[1]


def test_jobs_and_steps_have_the_keys_that_github_knows(workflow: Any) -> None:
    # YAML 1.1 reads the key `on` as true.
    assert workflow.keys() == {"name", True, "permissions", "concurrency", "jobs"}
    assert workflow[True].keys() - {"schedule"} == {"push", "pull_request"}
    for name, job in workflow["jobs"].items():
        assert job.keys() <= JOB_KEYS, name
        assert {"runs-on", "steps", "timeout-minutes"} <= job.keys(), name
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= workflow["jobs"].keys()
    for name, step in steps(workflow):
        assert step.keys() <= STEP_KEYS, name
        assert ("run" in step) != ("uses" in step), step


def test_it_may_read_and_no_more(workflow: Any) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert "pull_request_target" not in workflow[True]
    for _, step in steps(workflow):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_actions_are_pinned(workflow: Any) -> None:
    used = {step["uses"] for _, step in steps(workflow) if "uses" in step}
    assert used
    assert [
        each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", each)
    ] == []


def test_no_expression_of_a_stranger_s_words_is_run(workflow: Any) -> None:
    """A branch's name, a title: in `run` they would be shell."""
    assert [step for _, step in steps(workflow) if "${{" in step.get("run", "")] == []


def test_images_are_built_of_both_tiers_and_pushed_for_a_version_alone() -> None:
    job = workflows()["ci.yml"]["jobs"]["images"]
    assert job["strategy"]["matrix"] == {"tier": list(TIERS)}
    (build,) = [step for step in job["steps"] if "build-push" in step.get("uses", "")]
    assert build["with"]["push"] == "${{ env.PUSH }}"
    assert "startsWith(github.ref, 'refs/tags/v')" in job["env"]["PUSH"]
    assert build["with"]["file"] == "${{ matrix.tier }}/Dockerfile"
    given = re.findall(r"^(\w+)=", build["with"]["build-args"], re.MULTILINE)
    taken = "".join((ROOT / tier / "Dockerfile").read_text() for tier in TIERS)
    assert [name for name in given if f"ARG {name}=" not in taken] == []


def test_what_it_runs_is_there(workflow: Any) -> None:
    for job, step in steps(workflow):
        for command in re.split(r"[\n;]|&&", step.get("run", "")):
            words = [word for word in command.split() if word not in SHELL]
            if not words or command.split()[0] == "for":
                continue
            program = words[0]
            if program in TOOLS:
                brought = TOOLS[program]
                uses = [each.get("uses", "") for name, each in steps(workflow) if name == job]
                assert brought is None or any(brought in each for each in uses), command
            else:
                assert os.access(ROOT / program, os.X_OK), command
            for word in words[1:]:
                if word.startswith("helm/"):
                    assert (ROOT / word).exists(), command


def test_it_names_no_host(workflow: Any) -> None:
    """Where images and packages come from and go to is the repository's owner's to say."""
    text = "".join(path.read_text() for path in FOLDER.iterdir())
    assert re.findall(r"\w+://|\b[\w-]+\.(?:io|com|org|dev)\b", text) == []
