"""Where a Vault is and how one logs in to it, as SPIRE's plugins are configured: the environment goes first."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from operations.errors import ConfigurationError, InvalidArgument
from transport.web.trust import trusting
from transport.web.urls import Url


class TokenAuth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token: str = ""


class CertAuth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cert_auth_mount_point: str = "cert"
    cert_auth_role_name: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""


class AppRoleAuth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    approle_auth_mount_point: str = "approle"
    approle_id: str = ""
    approle_secret_id: str = ""


class K8sAuth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    k8s_auth_mount_point: str = "kubernetes"
    k8s_auth_role_name: str = ""
    token_path: str = ""


_METHODS: Final = ("token_auth", "cert_auth", "approle_auth", "k8s_auth")


class VaultConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is configured of every plugin that asks a Vault."""

    vault_addr: str = ""
    namespace: str = ""
    ca_cert_path: str = ""
    insecure_skip_verify: bool = False
    token_auth: TokenAuth | None = None
    cert_auth: CertAuth | None = None
    approle_auth: AppRoleAuth | None = None
    k8s_auth: K8sAuth | None = None

    def __post_init__(self) -> None:
        chosen = [name for name in _METHODS if getattr(self, name) is not None]
        if not chosen:
            raise ValueError(f"one way to log in must be configured: {', '.join(_METHODS)}")
        if len(chosen) > 1:
            raise ValueError(f"only one authentication method can be configured: keep one of {', '.join(chosen)}")
        if self.k8s_auth is not None:
            for name in ("k8s_auth_role_name", "token_path"):
                if not getattr(self.k8s_auth, name):
                    raise ValueError(f"{name} is required")

    def check_files(self) -> None:
        """Raises ConfigurationError for files of certificates and keys that cannot be used."""
        vault_of(self, os.environ).context()


@dataclass(frozen=True, slots=True)
class Login:
    """A path to write to below /v1/, and what; without a path the token is there already. All of it is secret."""

    path: str = ""
    body: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    token: str = field(default="", repr=False)
    token_path: str = ""
    """The file whose text is the `jwt` of the body, read at each login, since it changes."""


@dataclass(frozen=True, slots=True)
class Vault:
    """A Vault, with everything that is needed to ask it."""

    url: Url
    namespace: str
    login: Login
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    insecure_skip_verify: bool = False

    def context(self) -> ssl.SSLContext:
        """Blocks. Raises ConfigurationError."""
        try:
            context = trusting(self.ca_cert_path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"ca_cert_path {self.ca_cert_path}: {_reason(error)}") from error
        if self.client_cert_path:
            try:
                context.load_cert_chain(self.client_cert_path, self.client_key_path, password=_no_password)
            except (OSError, ValueError) as error:
                pair = f"{self.client_cert_path} and {self.client_key_path}"
                raise ConfigurationError(f"client certificate and key {pair}: {_reason(error)}") from error
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def vault_of(configuration: VaultConfiguration, environment: Mapping[str, str]) -> Vault:
    """Raises ConfigurationError."""
    address = environment.get("VAULT_ADDR", configuration.vault_addr)
    if not address:
        raise ConfigurationError("vault_addr is required: set it, or VAULT_ADDR in the environment")
    try:
        url = Url.parse(address)
    except InvalidArgument as error:
        raise ConfigurationError(f"vault_addr: {error}") from error
    cert = configuration.cert_auth or CertAuth()
    pair = ("", "")
    if configuration.cert_auth is not None:
        pair = (
            environment.get("VAULT_CLIENT_CERT", cert.client_cert_path),
            environment.get("VAULT_CLIENT_KEY", cert.client_key_path),
        )
        if not all(pair):
            raise ConfigurationError(
                "both client cert and client key are required: set client_cert_path and client_key_path"
            )
    return Vault(
        url=url,
        namespace=environment.get("VAULT_NAMESPACE", configuration.namespace),
        login=_login(configuration, environment),
        ca_cert_path=environment.get("VAULT_CACERT", configuration.ca_cert_path),
        client_cert_path=pair[0],
        client_key_path=pair[1],
        insecure_skip_verify=configuration.insecure_skip_verify,
    )


def _login(configuration: VaultConfiguration, environment: Mapping[str, str]) -> Login:
    if (token := configuration.token_auth) is not None:
        text = environment.get("VAULT_TOKEN", token.token)
        if not text:
            raise ConfigurationError("token is empty: set it in token_auth, or VAULT_TOKEN in the environment")
        return Login(token=text)
    if (cert := configuration.cert_auth) is not None:
        return Login(_login_path(cert.cert_auth_mount_point), {"name": cert.cert_auth_role_name})
    if (role := configuration.approle_auth) is not None:
        body = {
            "role_id": environment.get("VAULT_APPROLE_ID", role.approle_id),
            "secret_id": environment.get("VAULT_APPROLE_SECRET_ID", role.approle_secret_id),
        }
        return Login(_login_path(role.approle_auth_mount_point), body)
    kubernetes = configuration.k8s_auth or K8sAuth()
    path = _login_path(kubernetes.k8s_auth_mount_point)
    return Login(path, {"role": kubernetes.k8s_auth_role_name}, token_path=kubernetes.token_path)


def _login_path(mount: str) -> str:
    return f"auth/{mount.strip('/')}/login"


def read_jwt(path: str) -> str:
    """Blocks. Raises OSError and ValueError."""
    return Path(path).read_text(encoding="ascii").strip()


def _no_password() -> str:
    """OpenSSL would ask on the terminal for it."""
    raise ValueError("the key is encrypted: give one that is not")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "no certificates or key in PEM, or they do not belong together"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
