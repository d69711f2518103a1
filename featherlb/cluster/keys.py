"""Keys of a cluster: one authority, and a certificate for each node.

A node trusts whom the authority has signed, and nobody else; a certificate's common name is the
node's. The authority's own key is needed only to add nodes.
"""

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from featherlb.model.errors import ConfigError, HostError

DAYS = 3650
"""For which certificates are valid: a cluster must not fall apart on a date nobody remembers."""


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where the keys of one node are."""

    directory: Path
    node: str

    @property
    def authority(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.node}.pem"

    @property
    def key(self) -> Path:
        return self.directory / f"{self.node}.key"


def context(files: KeyFiles, *, server: bool) -> ssl.SSLContext:
    """Mutual TLS with these keys; HostError if one is missing, or others may read the key."""
    purpose = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nodes are known by names that are no host names: the certificate's is compared with the one
    # in the greeting.
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    for path in (files.authority, files.certificate, files.key):
        if not path.exists():
            raise HostError(f"the cluster's {path} is missing: `featherlb cluster keys` makes them")
    if files.key.stat().st_mode & 0o077:
        raise HostError(f"others may read {files.key}: chmod 600 it")
    try:
        made.load_verify_locations(files.authority)
        made.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise HostError(f"cannot use the cluster's keys in {files.directory}: {error}") from None
    return made


def name_of(certificate: object) -> str:
    """The common name in what `SSLObject.getpeercert` returns; empty if it has none."""
    if not isinstance(certificate, dict):
        return ""
    for part in certificate.get("subject", ()):
        for kind, value in part:
            if kind == "commonName":
                return str(value)
    return ""


def make(directory: Path, nodes: Iterable[str]) -> list[Path]:
    """Make keys for these nodes, and an authority if the directory has none; the files made. Files
    that exist stay as they are. ConfigError without the package `cryptography`."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise ConfigError(
            "`featherlb cluster keys` needs the package cryptography: pip install cryptography"
        ) from None

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def write(path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
        made.append(path)

    def private(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def certificate(
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Name,
        issuer_key: ec.EllipticCurvePrivateKey,
        *,
        authority: bool,
    ) -> bytes:
        now = datetime.now(UTC)
        signed = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Nodes' clocks differ.
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=DAYS))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(issuer_key, hashes.SHA256())
        )
        return signed.public_bytes(serialization.Encoding.PEM)

    made: list[Path] = []
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_file, authority_key_file = directory / "ca.pem", directory / "ca.key"
    issuer = named("featherlb cluster")
    if authority_file.exists():
        loaded = serialization.load_pem_private_key(authority_key_file.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        authority_key = loaded
    else:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        write(authority_key_file, private(authority_key))
        write(
            authority_file,
            certificate(issuer, authority_key, issuer, authority_key, authority=True),
        )
    for node in nodes:
        files = KeyFiles(directory, node)
        if files.certificate.exists():
            continue
        key = ec.generate_private_key(ec.SECP256R1())
        write(files.key, private(key))
        write(
            files.certificate,
            certificate(named(node), key, issuer, authority_key, authority=False),
        )
    return made
