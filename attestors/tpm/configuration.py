"""The settings of the server half of NodeAttestor "tpm"."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import msgspec

from operations.errors import InvalidArgument

_LONGEST = timedelta(hours=1)
_LARGEST_LOG = 1 << 30


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`endorsement_ca_path` is a file or folder of manufacturers' roots, `endorsement_hash_path` a list of EK hashes;
    with neither, every node is refused. `platform_ca_path` is of those who sign platform certificates, for selectors.

    Without `policy_path` a node needs no more than a known TPM. In mode "observe" what fails the policy is written
    down and let in. `event_log` asks for the firmware's log and `ima` for the kernel's list though no policy does.
    Sizes are in bytes: `max_logs_size` is what the logs of all attestations that are under way take at once. `timeout`
    is a whole attestation's. In the folder `evidence_path` the latest evidence of each node is kept, and the latest
    that was refused: at most `max_evidence_files` of `max_evidence_size` bytes together.
    """

    endorsement_ca_path: str = ""
    endorsement_hash_path: str = ""
    platform_ca_path: str = ""
    policy_path: str = ""
    pcr_bank: Literal["sha256", "sha384", "sha512"] = "sha256"
    mode: Literal["enforce", "observe"] = "enforce"
    evict_on_failure: bool = False
    require_tpm_key: bool = False
    event_log: bool = True
    ima: bool = False
    max_event_log_size: int = 4 << 20
    max_ima_size: int = 48 << 20
    max_logs_size: int = 128 << 20
    timeout: timedelta = timedelta(minutes=5)
    evidence_path: str = ""
    max_evidence_files: int = 2048
    max_evidence_size: int = 2 << 30

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        for key in ("max_event_log_size", "max_ima_size", "max_logs_size", "max_evidence_files", "max_evidence_size"):
            if getattr(self, key) <= 0:
                raise InvalidArgument(f"{key} must be greater than 0")
        largest = max(self.max_event_log_size, self.max_ima_size)
        if largest > _LARGEST_LOG:
            raise InvalidArgument(f"max_event_log_size and max_ima_size must be at most {_LARGEST_LOG} bytes")
        if self.max_logs_size < largest:
            raise InvalidArgument("max_logs_size must be at least max_event_log_size and max_ima_size")
        if not timedelta() < self.timeout <= _LONGEST:
            raise InvalidArgument("timeout must be greater than 0 and at most 1h")

    @property
    def enforced(self) -> bool:
        return self.mode == "enforce"

    def check_files(self) -> None:
        """Raises ConfigurationError for files that cannot be used."""
        from attestors.tpm import evidence_store  # only a command that looks at the files needs these
        from attestors.tpm.policy import loading
        from attestors.tpm.verification import endorsement, platform

        endorsement.load(self.endorsement_ca_path, self.endorsement_hash_path)
        if self.platform_ca_path:
            platform.load(self.platform_ca_path)
        if self.policy_path:
            loading.load(self.policy_path)
        if self.evidence_path:
            evidence_store.EvidenceStore(self.evidence_path, most=self.max_evidence_files, size=self.max_evidence_size)
