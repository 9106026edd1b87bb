"""UpstreamAuthority "vault": the PKI engine of a HashiCorp Vault, or of an OpenBao, signs this server's authority."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from identity import der
from identity.bundles import JwtAuthority, X509Authority
from keystores.vault.client import Data, VaultClient, below
from keystores.vault.configuration import VaultConfiguration, vault_of
from operations.errors import InvalidArgument, PermanentlyUnusable, Unsupported
from plugins.upstreamauthority import LocalBundle, MintedX509Ca, PublishedJwtKeys, no_updates

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "vault"


class Configuration(VaultConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pki_mount_point: str = "pki"


class VaultAuthority:
    def __init__(self, client: VaultClient, mount: str) -> None:
        self._client = client
        self._mount = mount

    @property
    def name(self) -> str:
        return NAME

    async def mint_x509_ca(self, csr: bytes, preferred_ttl: int) -> MintedX509Ca:
        """Raises keystores.errors, and PermanentlyUnusable for an answer without certificates."""
        body = await asyncio.to_thread(_request, csr, preferred_ttl)
        answer = await self._client.write(below(self._mount, "root", "sign-intermediate"), body)
        chain, root = _certificates(answer)
        return MintedX509Ca(chain, (X509Authority(root),), no_updates())

    async def publish_jwt_key(self, key: JwtAuthority) -> PublishedJwtKeys:
        raise Unsupported("publishing upstream is unsupported")

    async def subscribe_to_local_bundle(self) -> LocalBundle:
        raise Unsupported("fetching upstream trust bundle is unsupported")

    async def close(self) -> None:
        await self._client.close()


def _request(csr: bytes, preferred_ttl: int) -> Data:
    """What SPIRE asks with. Raises InvalidArgument."""
    try:
        request = x509.load_der_x509_csr(csr)
        uris = _uris(request)
    except ValueError as error:
        raise InvalidArgument(f"failed to parse CSR data: {error}") from error
    if not der.proves_possession(request, csr):
        raise InvalidArgument("the request is not signed by its own key")
    if not uris:
        raise InvalidArgument("CSR must have at least one URI")
    body: dict[str, Any] = {
        "common_name": next(iter(_texts(request.subject, NameOID.COMMON_NAME)), ""),
        "organization": ",".join(_texts(request.subject, NameOID.ORGANIZATION_NAME)),
        "country": ",".join(_texts(request.subject, NameOID.COUNTRY_NAME)),
        "uri_sans": ",".join(uris),
        "csr": request.public_bytes(Encoding.PEM).decode(),
        "ttl": str(preferred_ttl) if preferred_ttl else "",
    }
    return body


def _uris(request: x509.CertificateSigningRequest) -> Sequence[str]:
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _texts(name: x509.Name, oid: x509.ObjectIdentifier) -> Sequence[str]:
    return [str(each.value) for each in name.get_attributes_for_oid(oid)]


def _certificates(answer: Data) -> tuple[Sequence[bytes], bytes]:
    """The chain without its root, and the root: the last of the CA's chain, or the CA itself where it has none."""
    own, issuer = _pem(answer, "certificate"), _pem(answer, "issuing_ca")
    told: object = answer.get("ca_chain") or []
    if not isinstance(told, list):
        raise PermanentlyUnusable("Vault's ca_chain is no list of certificates")
    above = [_der("ca_chain", each) for each in cast("list[object]", told)] or [issuer]
    root = above[-1]
    # Vault 1.11 and later have the new certificate in ca_chain, too.
    return (own, *(each for each in above if each not in (own, root))), root


def _pem(answer: Data, name: str) -> bytes:
    return _der(name, answer.get(name))


def _der(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise PermanentlyUnusable(f"Vault signed, but its answer has no {name}")
    try:
        return x509.load_pem_x509_certificate(text.encode()).public_bytes(Encoding.DER)
    except ValueError as error:
        raise PermanentlyUnusable(f"Vault signed, but its answer's {name} is no certificate in PEM") from error


async def load(configuration: Configuration, context: PluginContext) -> VaultAuthority:
    vault = vault_of(configuration, os.environ)
    await asyncio.to_thread(vault.context)
    if vault.insecure_skip_verify:
        context.log.warning(
            "TLS verification of Vault certificates is skipped. This is only recommended for test environments."
        )
    mount = configuration.pki_mount_point
    return VaultAuthority(VaultClient(vault, os.environ, context.log), mount)
