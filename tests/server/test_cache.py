"""What is held of earlier encodings: equal content is found, other content is not, and memory is bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retouch_server.engine.cache import Encodings, fingerprint


def test_fingerprints_tell_content_apart() -> None:
    ones, picture = torch.ones(2, 3), Image.new("RGB", (4, 2), "red")
    different = [
        ("a", "b"), ("ab", ""), ("ab",), (["a", "b"],), ("a", None), (1,), (1.0,), (True,), ("1",),
        (ones,), (ones.reshape(3, 2),), (ones.double(),), (2 * ones,), ([ones, ones],), (ones, ones),
        ({"x": 1},), ({"y": 1},), ({"x": 2},), (picture,), (picture.resize((2, 4)),), (picture.convert("L"),),
        (np.ones((2, 3), np.float32),), (np.zeros((2, 3), np.float32),), (torch.float32,), (torch.device("cpu"),),
    ]  # fmt: skip
    digests = [fingerprint(*values) for values in different]
    assert None not in digests
    assert len(set(digests)) == len(different)
    assert fingerprint(ones.clone(), {"x": 1, "y": picture.copy()}) == fingerprint(
        torch.ones(2, 3), {"y": picture, "x": 1}
    )


def test_what_has_no_content_to_read_has_no_fingerprint() -> None:
    assert fingerprint(object()) is None
    assert fingerprint("a", [torch.Generator()]) is None
    held = Encodings(100)
    held.put(None, torch.ones(1))
    assert held.get(None) is None
    assert held.bytes == 0


def test_what_is_held_cannot_be_written_into() -> None:
    held, value = Encodings(1000), {"x": (torch.zeros(4), None)}
    held.put(b"k", value)
    value["x"][0].add_(1)
    held.get(b"k")["x"][0].add_(2)
    assert torch.equal(held.get(b"k")["x"][0], torch.zeros(4))


def test_a_vaes_output_is_held_whole_and_its_size_counted() -> None:
    parameters = torch.randn(1, 8, 4, 4)
    held = Encodings(10_000)
    held.put(b"k", AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(parameters)))
    found = held.get(b"k")
    assert torch.equal(found.latent_dist.mode(), parameters[:, :4])
    # parameters, logvar (clamped, so a tensor of its own), std and var; mean is a view.
    assert held.bytes == 128 * 4 + 3 * 64 * 4


@pytest.mark.parametrize("capacity", [0, 3])
def test_what_is_too_large_is_not_held(capacity: int) -> None:
    held = Encodings(capacity)
    held.put(b"k", torch.zeros(1))
    assert held.get(b"k") is None
    assert held.bytes == 0


def test_the_least_recently_used_goes_first() -> None:
    held = Encodings(12)
    for key in (b"a", b"b", b"c"):
        held.put(key, torch.zeros(1))
    assert held.get(b"a") is not None
    held.put(b"d", torch.zeros(1))
    assert [key for key in (b"a", b"b", b"c", b"d") if held.get(key) is None] == [b"b"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8), st.booleans()), max_size=40))
def test_memory_is_bounded_and_what_is_found_is_right(
    schedule: list[tuple[int, int, bool]],
) -> None:
    held = Encodings(60)
    for name, size, put in schedule:
        key = fingerprint(name, size)
        if put:
            held.put(key, torch.full((size,), float(name)))
        elif (found := held.get(key)) is not None:
            assert torch.equal(found, torch.full((size,), float(name)))
        assert held.bytes <= 60
