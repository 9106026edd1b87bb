"""A TUF repository in a folder, with one key for all roles: what a mirror of Sigstore's trust serves.

https://theupdateframework.github.io/specification/latest/
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.simulators.sigstore import Sigstore, b64, new_key, pem, public_pem, sign, spki

Targets = Mapping[str, tuple[str, bytes]]
"""By name: what Sigstore uses one for, such as Fulcio, empty where it does not say, and the content."""


def targets_of(sigstore: Sigstore) -> Targets:
    """Each on its own, as older repositories have them."""
    return {
        "fulcio.crt.pem": ("Fulcio", pem(sigstore.ca, sigstore.root).encode()),
        "rekor.pub": ("Rekor", public_pem(sigstore.log.key)),
        "ctfe.pub": ("CTFE", public_pem(sigstore.ct_key)),
    }


def trusted_root_of(sigstore: Sigstore) -> Targets:
    """All in one document, as newer ones have them."""
    valid = {"start": "2020-01-01T00:00:00Z"}
    certificates = [{"rawBytes": b64(_der(pem(each)))} for each in (sigstore.ca, sigstore.root)]
    document = {
        "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
        "tlogs": [{"publicKey": {"rawBytes": b64(spki(sigstore.log.key)), "validFor": valid}}],
        "ctlogs": [{"publicKey": {"rawBytes": b64(spki(sigstore.ct_key)), "validFor": valid}}],
        "certificateAuthorities": [{"certChain": {"certificates": certificates}, "validFor": valid}],
    }
    return {"trusted_root.json": ("", json.dumps(document).encode())}


def _der(text: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(text)


class TufRepository:
    def __init__(self, folder: Path, targets: Targets, *, lifetime: timedelta = timedelta(days=7)) -> None:
        self.folder = folder
        self.targets = dict(targets)
        self._key = new_key()
        self._expires = f"{datetime.now(UTC) + lifetime:%Y-%m-%dT%H:%M:%SZ}"
        (folder / "targets").mkdir(parents=True)
        self.publish(1)
        self.first_root = (folder / "1.root.json").read_bytes()

    @property
    def mirror(self) -> str:
        return f"file://{self.folder}"

    def environment(self, folder: Path) -> dict[str, str]:
        """What points programs here; metadata are kept in the folder."""
        folder.mkdir(exist_ok=True)
        (folder / "first.json").write_bytes(self.first_root)
        return {
            "TUF_MIRROR": self.mirror,
            "TUF_ROOT_JSON": str(folder / "first.json"),
            "TUF_ROOT": str(folder / "kept"),
        }

    def publish(self, version: int) -> None:
        """All metadata of a version, a root among them, and the targets."""
        public = {"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256",
                  "keyval": {"public": public_pem(self._key).decode()}}  # fmt: skip
        names = ("root", "timestamp", "snapshot", "targets")
        roles = {role: {"keyids": [self._key_id], "threshold": 1} for role in names}
        root = {"consistent_snapshot": True, "keys": {self._key_id: public}, "roles": roles}
        self._write("root", version, root, f"{version}.root.json")
        listed = {name: self._put(name, usage, content) for name, (usage, content) in self.targets.items()}
        self._write("targets", version, {"targets": listed}, f"{version}.targets.json")
        snapshot = {"meta": {"targets.json": {"version": version}}}
        self._write("snapshot", version, snapshot, f"{version}.snapshot.json")
        self._write("timestamp", version, {"meta": {"snapshot.json": {"version": version}}}, "timestamp.json")

    @property
    def _key_id(self) -> str:
        return hashlib.sha256(public_pem(self._key)).hexdigest()

    def _put(self, name: str, usage: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "targets" / f"{digest}.{name}").write_bytes(content)
        target: dict[str, object] = {"length": len(content), "hashes": {"sha256": digest}}
        if usage:
            target["custom"] = {"sigstore": {"usage": usage, "status": "Active"}}
        return target

    def _write(self, role: str, version: int, content: Mapping[str, object], name: str) -> None:
        signed = {"_type": role, "spec_version": "1.0", "version": version, "expires": self._expires, **content}
        signature = sign(self._key, _canonical(signed)).hex()
        document = {"signatures": [{"keyid": self._key_id, "sig": signature}], "signed": signed}
        (self.folder / name).write_text(json.dumps(document))


def _canonical(value: object) -> bytes:
    """OLPC's canonical JSON, in which a new line stands for itself."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).replace("\\n", "\n").encode()
