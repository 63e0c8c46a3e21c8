"""Certificates to sign manifests with, good ones and others, as PEM files; and what is in a signed picture."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.certificates import DAY, Pair

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
PLAIN = serialization.NoEncryption()
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass
class Studio:
    """An authority that issues signers' certificates; its own is in `root`."""

    folder: Path
    name: str = "Studio"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.root = self.folder / f"{self.name}.pem"
        own = self._builder(f"{self.name} root", self.key, ca=True, days=30)
        self._own = own.sign(self.key, hashes.SHA256()).public_bytes(PEM)
        self.root.write_bytes(self._own)

    def issue(
        self,
        name: str = "Signer",
        *,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
        ca: bool = False,
        signs: bool = True,
        identified: bool = True,
        begins: int = -1,
        days: int = 1,
        form: serialization.PrivateFormat = PKCS8,
        encryption: serialization.KeySerializationEncryption = PLAIN,
    ) -> Pair:
        """A chain and its key; by default one that can sign."""
        own = key or ec.generate_private_key(ec.SECP256R1())
        asked = self._builder(name, own, ca=ca, begins=begins, days=days)
        if signs and not ca:
            asked = asked.add_extension(_usage(digital_signature=True), critical=True)
        if purposes:
            asked = asked.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if identified:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            asked = asked.add_extension(issuer, critical=False)
        pair = Pair(self.folder / f"{name}.chain.pem", self.folder / f"{name}.key.pem")
        pair.cert.write_bytes(asked.sign(self.key, hashes.SHA256()).public_bytes(PEM) + self._own)
        pair.key.write_bytes(own.private_bytes(PEM, form, encryption))
        return pair

    def under(self, name: str, *, begins: int = -1, days: int = 20) -> Studio:
        """An authority for which this one vouches: its certificate comes with those that it issues."""
        below = Studio(self.folder, name)
        subject = below._named(f"{name} root")
        asked = self._builder(subject, below.key, ca=True, begins=begins, days=days)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        asked = asked.add_extension(issuer, critical=False)
        below._own = asked.sign(self.key, hashes.SHA256()).public_bytes(PEM)
        return below

    def _builder(
        self,
        name: str | x509.Name,
        key: CertificateIssuerPrivateKeyTypes,
        *,
        ca: bool,
        begins: int = -1,
        days: int,
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._named(name) if isinstance(name, str) else name)
            .issuer_name(self._named(f"{self.name} root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if ca:
            builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
        return builder

    def _named(self, name: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.name),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )


def _usage(**has: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**(dict.fromkeys(names, False) | has))


def read(data: bytes, mime: str = "image/png") -> tuple[str, dict[str, Any]]:
    """The state of a signed picture's manifests (Valid, Invalid or Trusted), and all that they hold."""
    with (
        c2pa.Context.from_dict(OFFLINE) as context,
        c2pa.Reader(mime, io.BytesIO(data), context=context) as reader,
    ):
        return str(reader.get_validation_state()), json.loads(reader.json())


def active(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    """The active manifest of a picture whose manifests are valid."""
    state, told = read(data, mime)
    assert state == "Valid", told.get("validation_status")
    manifest: dict[str, Any] = told["manifests"][told["active_manifest"]]
    return manifest


def actions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    for each in manifest["assertions"]:
        if each["label"].startswith("c2pa.actions"):
            found: list[dict[str, Any]] = each["data"]["actions"]
            return found
    return []


def signed(
    data: bytes,
    pair: Pair,
    manifest: dict[str, Any],
    *,
    mime: str = "image/png",
    thumbnails: bool = False,
    thumbnail: bytes = b"",
    compressed: bool = False,
    resources: Mapping[str, bytes] = MappingProxyType({}),
    ingredients: Sequence[tuple[dict[str, Any], bytes]] = (),
) -> bytes:
    """A picture as another program might have signed it.

    resources: what `manifest` or an ingredient refers to, by identifier. ingredients: what each is, and a PNG.
    """
    settings = {
        **OFFLINE,
        "builder": {"thumbnail": {"enabled": thumbnails}},
        "core": {"prefer_compress_manifests": compressed},
    }
    if thumbnail:
        manifest = manifest | {"thumbnail": {"format": "image/jpeg", "identifier": "thumbnail"}}
        resources = {**resources, "thumbnail": thumbnail}
    info = c2pa.C2paSignerInfo("es256", pair.cert.read_bytes(), pair.key.read_bytes(), None)
    out = io.BytesIO()
    with (
        c2pa.Context.from_dict(settings, signer=c2pa.Signer.from_info(info)) as context,
        c2pa.Builder(manifest, context) as builder,
    ):
        for name, content in resources.items():
            builder.add_resource(name, io.BytesIO(content))
        for about, png in ingredients:
            builder.add_ingredient(about, "image/png", io.BytesIO(png))
        builder.sign(mime, io.BytesIO(data), out)
    return out.getvalue()
