"""Whose results these are: the operator's certificate and key for signing manifests, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .watched import Contents, Unusable

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

# What a signer's certificate may be for: e-mail protection, documents, C2PA claims.
PURPOSES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Identity:
    """A chain of certificates, leaf first, with the leaf's key (both PEM), and what signs by it, as C2PA calls that.

    name: whom the leaf is of. expires: Unix time at which the first of the chain does.
    """

    chain: bytes
    key: bytes = field(repr=False)
    algorithm: str
    name: str
    expires: float


def read(chain: Contents, key: Contents) -> Identity:
    """An identity of what two files hold. Raises Unusable."""
    certificates, private = read_chain(chain), _read_key(key)
    from cryptography.hazmat.primitives import serialization

    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    own, theirs = private.public_key(), certificates[0].public_key()
    if own.public_bytes(*form) != theirs.public_bytes(*form):
        raise Unusable(["is not the key of the first certificate in C2PA_CERT"])
    # The one form that the library takes.
    pkcs8 = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Identity(
        chain=b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates),
        key=pkcs8,
        algorithm=_algorithm(private),
        name=certificates[0].subject.rfc4514_string(),
        expires=min(each.not_valid_after_utc.timestamp() for each in certificates),
    )


def read_chain(pem: Contents) -> list[x509.Certificate]:
    """A file's certificates, the first of which can sign. Raises Unusable with all that is wrong with that."""
    if isinstance(pem, str):
        raise Unusable([pem])
    try:
        import c2pa  # noqa: F401 is it there?
    except ImportError:
        raise Unusable(["needs the package c2pa-python: pip install 'retouch[c2pa]'"]) from None
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(pem)
        faults = [*_faults(chain[0]), *_breaks(chain)]
    except x509.DuplicateExtension as error:
        raise Unusable([f"has an extension twice: {error.oid.dotted_string}"]) from None
    except ValueError:
        raise Unusable(["holds no PEM certificate"]) from None
    if faults:
        raise Unusable(faults)
    return chain


def _faults(leaf: x509.Certificate) -> Iterator[str]:
    """What keeps a certificate from signing manifests (C2PA 2.2, section 14.5)."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    yield from _untimely(leaf)
    try:
        leaf.public_key()
    except UnsupportedAlgorithm as error:
        yield f"has a key of an unknown kind: {error}"
    had: dict[type, Any] = {type(each.value): each.value for each in leaf.extensions}
    if (basic := had.get(x509.BasicConstraints)) and basic.ca:
        yield "begins with an authority's certificate: the signer's own comes first"
        return
    if not (usage := had.get(x509.KeyUsage)) or not usage.digital_signature:
        yield "has no key usage digitalSignature"
    purposes = {each.dotted_string for each in had.get(x509.ExtendedKeyUsage, ())}
    if not purposes.intersection(PURPOSES):
        yield "has none of the extended key usages emailProtection, documentSigning and C2PA claim signing"
    if x509.AuthorityKeyIdentifier not in had:
        yield "has no authority key identifier"


def _untimely(certificate: x509.Certificate) -> Iterator[str]:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        yield f"expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < certificate.not_valid_before_utc:
        yield f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"


def _breaks(chain: Sequence[x509.Certificate]) -> Iterator[str]:
    """Where nobody can follow a chain from its leaf on, whomever they trust."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    for number, (child, issuer) in enumerate(pairwise(chain), 2):
        whose = f"certificate {number}, of {issuer.subject.rfc4514_string()},"
        try:
            child.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            yield f"{whose} did not issue the one before it: each comes before its issuer"
        for fault in _untimely(issuer):
            yield f"{whose} {fault}"


def _read_key(pem: Contents) -> PrivateKeyTypes:
    if isinstance(pem, str):
        raise Unusable([pem])
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise Unusable(["is encrypted; it must be without a passphrase"]) from None
    except (ValueError, UnsupportedAlgorithm):
        raise Unusable(["holds no PEM private key"]) from None


def _algorithm(key: PrivateKeyTypes) -> str:
    """What a key signs by, as C2PA calls it."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise Unusable(["must be P-256, P-384, P-521, RSA of 2048 bits or more, or Ed25519"])
