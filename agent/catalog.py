"""The plugins that the agent brings along."""

from __future__ import annotations

from collections.abc import Sequence

from operations.errors import ConfigurationError
from operations.metrics import emitters
from plugins.blocks import PluginBlock
from plugins.catalog import Builtin, Builtins
from plugins.external import loading
from plugins.external.loading import Facades, HostService

BUILTINS: Builtins = {
    "KeyManager": {
        "disk": Builtin("keystores.disk:AgentConfiguration", "keystores.disk:load_agent"),
        "memory": Builtin("keystores.memory:Configuration", "keystores.memory:load"),
        "pkcs11": Builtin("keystores.pkcs11.configuration:Configuration", "keystores.pkcs11.manager:load_agent"),
        "tpm": Builtin("keystores.tpm.configuration:Configuration", "keystores.tpm.manager:load_agent"),
    },
    "NodeAttestor": {
        "http_challenge": Builtin(
            "attestors.http_challenge.agent:Configuration", "attestors.http_challenge.agent:load"
        ),
        "join_token": Builtin("attestors.join_token.agent:Configuration", "attestors.join_token.agent:load"),
        "sshpop": Builtin("attestors.sshpop.agent:Configuration", "attestors.sshpop.agent:load"),
        "tpm": Builtin("attestors.tpm.agent:Configuration", "attestors.tpm.agent:load"),
        "tpm_devid": Builtin("attestors.tpm_devid.agent:Configuration", "attestors.tpm_devid.agent:load"),
        "x509pop": Builtin("attestors.x509pop.agent:Configuration", "attestors.x509pop.agent:load"),
    },
    "SVIDStore": {
        "disk": Builtin("publishers.disk.configuration:Configuration", "publishers.disk.store:load"),
    },
    "WorkloadAttestor": {
        "docker": Builtin("attestors.docker.configuration:Configuration", "attestors.docker.attestor:load"),
        "k8s": Builtin("attestors.k8s.configuration:Configuration", "attestors.k8s.attestor:load"),
        "oidc_attestor": Builtin("attestors.oidc.configuration:Configuration", "attestors.oidc.attestor:load"),
        "slurm": Builtin("attestors.slurm:Configuration", "attestors.slurm:load"),
        "systemd": Builtin("attestors.systemd.attestor:Configuration", "attestors.systemd.attestor:load"),
        "unix": Builtin("attestors.unix:Configuration", "attestors.unix:load"),
    },
}

FACADES: Facades = {
    "KeyManager": "keystores.external:AgentKeyManager",
    "NodeAttestor": "plugins.external.nodeattestor:ExternalAgentNodeAttestor",
    "SVIDStore": "plugins.external.svidstore:ExternalSvidStore",
    "WorkloadAttestor": "plugins.external.workloadattestor:ExternalWorkloadAttestor",
}
"""The plugin types of which external ones are hosted."""


def host_services() -> Sequence[HostService]:
    """What the agent offers its external plugins."""
    from plugins.external import metrics  # for those who have some

    return (metrics.service(emitters()),)


async def validate_external(blocks: Sequence[PluginBlock], trust_domain: str) -> Sequence[ConfigurationError]:
    """What external plugins find wrong with their configuration: they are started for it, and ended."""
    return await loading.validate(blocks, FACADES, host_services, trust_domain)
