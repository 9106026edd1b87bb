"""A TUF repository in a folder, with one key for all roles: what a mirror of Sigstore's trust serves."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

Usages = Mapping[str, tuple[str, bytes]]
"""Targets by name: Sigstore's usage, such as Fulcio, empty for none, and the content."""


class TufRepository:
    def __init__(self, folder: Path, targets: Usages, *, expires: datetime | None = None) -> None:
        self.folder = folder
        self.targets = dict(targets)
        self._signer = CryptoSigner.generate_ecdsa()
        self._expires = expires or (datetime.now(UTC) + timedelta(days=7)).replace(microsecond=0)
        self._root = Root(version=1, expires=self._expires, consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            self._root.add_key(self._signer.public_key, role)
        folder.mkdir(parents=True, exist_ok=True)
        self.publish(1)
        self.first_root = (folder / "1.root.json").read_bytes()

    @property
    def mirror(self) -> str:
        return f"file://{self.folder}"

    def publish(self, version: int) -> None:
        """Metadata and targets of a version; the root is a new one each time."""
        self._root.version = version
        self._write(Metadata(self._root), f"{version}.root.json")
        listed: dict[str, TargetFile] = {}
        for name, (usage, content) in self.targets.items():
            listed[name] = self._put(name, usage, content)
        self._write(Metadata(Targets(version, expires=self._expires, targets=listed)), f"{version}.targets.json")
        meta = {"targets.json": MetaFile(version)}
        self._write(Metadata(Snapshot(version, expires=self._expires, meta=meta)), f"{version}.snapshot.json")
        timestamp = Timestamp(version, expires=self._expires, snapshot_meta=MetaFile(version))
        self._write(Metadata(timestamp), "timestamp.json")

    def _put(self, name: str, usage: str, content: bytes) -> TargetFile:
        target = TargetFile.from_data(name, content, ["sha256"])
        if usage:
            target.unrecognized_fields["custom"] = {"sigstore": {"usage": usage, "status": "Active"}}
        path = self.folder / "targets" / f"{target.hashes['sha256']}.{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return target

    def _write(self, metadata: Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp],
               name: str) -> None:  # fmt: skip
        metadata.sign(self._signer)
        metadata.to_file(str(self.folder / name))
