"""The operator's certificate for signing: what is taken, and what each mistake is told as."""

from __future__ import annotations

import dataclasses
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID

from retouch_server import identity, manifests
from retouch_server.settings import PREFIX, Settings, SettingsError
from retouch_server.settings import read as read_settings
from retouch_server.watched import Unusable
from tests.certificates import Authority, Pair
from tests.signing import Studio

KEYS: dict[str, Callable[[], Any]] = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}

NO_ISSUER = "did not issue the one before it: each comes before its issuer"


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def mistakes(monkeypatch: pytest.MonkeyPatch, cert: Path | str, key: Path | str) -> list[str]:
    """What settings say of such files."""
    for name, path in (("C2PA_CERT", cert), ("C2PA_KEY", key)):
        if path:
            monkeypatch.setenv(PREFIX + name, str(path))
    with pytest.raises(SettingsError) as error:
        read_settings([])
    return str(error.value).replace(PREFIX, "").splitlines()


def of(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return mistakes(monkeypatch, pair.cert, pair.key)


@pytest.mark.parametrize("algorithm", KEYS)
def test_each_kind_of_key_signs_by_its_own_algorithm(algorithm: str, studio: Studio) -> None:
    pair = studio.issue(key=KEYS[algorithm]())
    read = identity.read(pair.cert.read_bytes(), pair.key.read_bytes())
    assert read.algorithm == algorithm
    assert "Signer" in read.name
    assert repr(read.key) not in repr(read)
    manifests.Signer(read)


@pytest.mark.parametrize(
    "purpose", ["1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"]
)
def test_each_purpose_that_c2pa_knows_is_taken(purpose: str, studio: Studio) -> None:
    pair = studio.issue(purposes=(ObjectIdentifier(purpose),))
    manifests.make(pair.cert.read_bytes(), pair.key.read_bytes())


def test_a_key_in_openssls_old_form_is_taken(studio: Studio) -> None:
    pair = studio.issue(form=serialization.PrivateFormat.TraditionalOpenSSL)
    assert pair.key.read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY")
    manifests.make(pair.cert.read_bytes(), pair.key.read_bytes())


def test_settings_take_a_good_pair(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = studio.issue()
    monkeypatch.setenv(PREFIX + "C2PA_CERT", str(pair.cert))
    monkeypatch.setenv(PREFIX + "C2PA_KEY", str(pair.key))
    assert read_settings([]).c2pa_cert == pair.cert


def test_the_chain_expires_with_its_first(studio: Studio) -> None:
    pair = studio.issue(days=3)
    read = identity.read(pair.cert.read_bytes(), pair.key.read_bytes())
    leaf, root = identity.read_chain(pair.cert.read_bytes())
    assert read.expires == leaf.not_valid_after_utc.timestamp()
    assert leaf.not_valid_after_utc < root.not_valid_after_utc


def test_one_without_the_other(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = studio.issue()
    wrong = mistakes(monkeypatch, pair.cert, "")
    assert wrong == ["C2PA_KEY: C2PA_CERT and C2PA_KEY need each other"]


def test_signed_but_not_marked(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "PROVENANCE", "false")
    assert of(studio.issue(), monkeypatch) == [
        "C2PA_CERT: needs PROVENANCE: what is signed is marked too"
    ]


def test_a_key_of_another_certificate(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = mistakes(monkeypatch, studio.issue("one").cert, studio.issue("other").key)
    assert wrong == ["C2PA_KEY: is not the key of the first certificate in C2PA_CERT"]


def test_all_that_a_certificate_lacks_is_told_at_once(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = studio.issue(purposes=(ExtendedKeyUsageOID.SERVER_AUTH,), signs=False, identified=False)
    assert of(pair, monkeypatch) == [
        "C2PA_CERT: has no key usage digitalSignature",
        "C2PA_CERT: has none of the extended key usages emailProtection, documentSigning and C2PA claim signing",
        "C2PA_CERT: has no authority key identifier",
    ]


def test_a_servers_certificate_is_none_for_signing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = of(Authority(tmp_path).issue("server"), monkeypatch)
    assert len(wrong) == 3
    assert all(line.startswith("C2PA_CERT: has no") for line in wrong)


@pytest.mark.parametrize(
    ("begins", "days", "word"), [(-3, -1, "expired at"), (1, 2, "is not valid before")]
)
def test_out_of_its_time(
    begins: int, days: int, word: str, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = of(studio.issue(begins=begins, days=days), monkeypatch)
    assert line.startswith(f"C2PA_CERT: {word} 20")
    assert line.endswith("UTC")


def blocks(pem: Path) -> list[str]:
    """The certificates of a file."""
    end = "-----END CERTIFICATE-----\n"
    return [each + end for each in pem.read_text().split(end)[:-1]]


def test_the_authority_first(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = studio.issue()
    leaf, root = blocks(pair.cert)
    pair.cert.write_text(root + leaf)
    assert of(pair, monkeypatch) == [
        "C2PA_CERT: begins with an authority's certificate: the signer's own comes first",
        f"C2PA_CERT: certificate 2, of CN=Signer,O=Studio, {NO_ISSUER}",
    ]


def test_a_chain_of_three_is_taken_in_its_order_alone(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = studio.under("Between").issue()
    leaf, between = blocks(pair.cert)
    root = studio.root.read_text()
    for good in (leaf, leaf + between, leaf + between + root):
        manifests.make(good.encode(), pair.key.read_bytes())
    pair.cert.write_text(leaf + root + between)
    assert of(pair, monkeypatch) == [
        f"C2PA_CERT: certificate 2, of CN=Studio root,O=Studio, {NO_ISSUER}",
        f"C2PA_CERT: certificate 3, of CN=Between root,O=Between, {NO_ISSUER}",
    ]


def test_a_chain_of_another_authority(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the same name, too."""
    pair = studio.issue()
    leaf, _ = blocks(pair.cert)
    for other in (Studio(tmp_path, "Other"), Studio(tmp_path)):
        pair.cert.write_text(leaf + other.root.read_text())
        (line,) = of(pair, monkeypatch)
        assert line.startswith(
            f"C2PA_CERT: certificate 2, of CN={other.name} root,O={other.name}, did"
        )


@pytest.mark.parametrize(
    ("begins", "days", "word"), [(-3, -1, "expired at"), (1, 2, "is not valid before")]
)
def test_a_chain_that_is_out_of_its_time_further_up(
    begins: int, days: int, word: str, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = of(studio.under("Between", begins=begins, days=days).issue(), monkeypatch)
    assert line.startswith(f"C2PA_CERT: certificate 2, of CN=Between root,O=Between, {word} 20")


# A certificate of brainpoolP256t1, which cryptography knows no keys of; it is valid until 2126.
UNKNOWN = """\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUKgAwIBAgIUQvsnBG3vhLAtN0TxZZOjwH3SmPowCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGU2lnbmVyMCAXDTI2MTEzMDEyMDA0N1oYDzIxMjYxMTA2MTIw
MDQ3WjARMQ8wDQYDVQQDDAZTaWduZXIwWjAUBgcqhkjOPQIBBgkrJAMDAggBAQgD
QgAEPxij9F2entvceod3VHFodmSEUtt2bBzgdJD2JQlJZVpLbrBOuL221uNr4tCS
1wceTJauqHuIiv38y4tvXF5+GaN1MHMwDAYDVR0TAQH/BAIwADAOBgNVHQ8BAf8E
BAMCB4AwEwYDVR0lBAwwCgYIKwYBBQUHAwQwHQYDVR0OBBYEFG21WxYr7EbzcRD+
J9FFU5WybU3JMB8GA1UdIwQYMBaAFG21WxYr7EbzcRD+J9FFU5WybU3JMAoGCCqG
SM49BAMCA0cAMEQCICQCgeDXKvxujfaPZ1VE7IfRca0l3B82Hbaqj6BUDiNQAiBH
TMM2HRdYDfjilGW3uXM50AlCTebW4InH0MqB73mWsw==
-----END CERTIFICATE-----
"""


def test_a_certificate_whose_key_is_of_an_unknown_kind(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = studio.issue()
    pair.cert.write_text(UNKNOWN)
    assert of(pair, monkeypatch) == [
        "C2PA_CERT: has a key of an unknown kind: Curve 1.3.36.3.3.2.8.1.1.8 is not supported"
    ]


def test_a_certificate_with_an_extension_twice(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = studio.issue(purposes=(ExtendedKeyUsageOID.EMAIL_PROTECTION,))
    (leaf,) = x509.load_pem_x509_certificates(blocks(pair.cert)[0].encode())
    # Its key usage (2.5.29.15) is made a second extended key usage (2.5.29.37).
    der = leaf.public_bytes(serialization.Encoding.DER)
    assert der.count(b"\x06\x03\x55\x1d\x0f") == 1
    twice = der.replace(b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x25")
    pair.cert.write_text(ssl.DER_cert_to_PEM_cert(twice))
    assert of(pair, monkeypatch) == ["C2PA_CERT: has an extension twice: 2.5.29.37"]


@pytest.mark.parametrize("kind", ["short", "unknown"])
def test_weak_and_unknown_keys(kind: str, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505 as it should be
    unknown = ec.generate_private_key(ec.SECP256K1())
    assert of(studio.issue(key=short if kind == "short" else unknown), monkeypatch) == [
        "C2PA_KEY: must be P-256, P-384, P-521, RSA of 2048 bits or more, or Ed25519"
    ]


def test_an_encrypted_key(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = studio.issue(encryption=serialization.BestAvailableEncryption(b"secret"))
    assert of(pair, monkeypatch) == ["C2PA_KEY: is encrypted; it must be without a passphrase"]


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x00\xff" * 99])
def test_rubbish(content: bytes, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = studio.issue()
    pair.key.write_bytes(content)
    assert of(pair, monkeypatch) == ["C2PA_KEY: holds no PEM private key"]
    pair.cert.write_bytes(content)
    assert of(pair, monkeypatch) == ["C2PA_CERT: holds no PEM certificate"]


def test_without_the_package(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert of(studio.issue(), monkeypatch) == [
        "C2PA_CERT: needs the package c2pa-python: pip install 'retouch[c2pa]'"
    ]


def test_what_the_library_alone_finds_is_told_too(studio: Studio) -> None:
    one, other = studio.issue("one"), studio.issue("other")
    read = identity.read(one.cert.read_bytes(), one.key.read_bytes())
    with pytest.raises(Unusable, match="cannot sign with C2PA_CERT"):
        manifests.Signer(dataclasses.replace(read, key=other.key.read_bytes()))


def test_it_is_off_unless_asked_for() -> None:
    assert (Settings().provenance, Settings().c2pa_cert) == (True, None)
