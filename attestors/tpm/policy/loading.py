"""From a policy file, and the files that it names, to Policies. Every fault has file and line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from attestors.tpm import pcrs
from attestors.tpm.policy import allow_lists, configuration, values
from attestors.tpm.policy.patterns import Patterns
from attestors.tpm.policy.rules import (
    DigestRule,
    EventRules,
    FirmwareRule,
    ImaRules,
    Keys,
    Policies,
    Policy,
)
from operations import config, hcl
from operations.errors import ConfigurationError, InvalidArgument, raise_problems
from operations.hcl import Attribute, Block, Body, Position, name_of
from operations.quoting import quote

T = TypeVar("T")
P = ParamSpec("P")

LIMIT: Final = 256
"""Policies in a file."""
EDITION: Final = b"spire boot policy 1\0"
"""Part of what is digested: another one where the same text is judged in another way."""
_KEY_LIMIT: Final = 1 << 20
_SHA256: Final = (32,)


def load(path: str) -> Policies:
    """Read a policy file. Blocks. Raises ConfigurationError, or ConfigurationErrors for several faults."""
    return read(hcl.load(path), Path(path).parent)


def read(body: Body, folder: Path) -> Policies:
    """As `load`, of a file that was parsed; `folder` is where paths begin."""
    blocks = dict(_blocks(body))
    file = config.bind(configuration.File, body)
    reader = _Reader(folder)
    policies = tuple(reader.policy(name, written, blocks.get(name, body)) for name, written in file.policy.items())
    if not policies:
        reader.problems.append(body.position.error('there is no policy in it: write policy "NAME" { … }'))
    if len(policies) > LIMIT:
        reader.problems.append(body.position.error(f"{len(policies)} policies: {LIMIT} are the most"))
    raise_problems(reader.problems)
    decisive = (EDITION, body.source.encode("utf-8", "surrogatepass"), *reader.contents)
    parts = b"".join(hashlib.sha256(part).digest() for part in decisive)
    return Policies(policies, hashlib.sha256(parts).digest())


def _blocks(body: Body) -> Iterator[tuple[str, Body]]:
    """The policies by name. Two of one name would be merged, and judge otherwise than either says."""
    seen: dict[str, Position] = {}
    for block in (block for item in body.named("policy") for block in _labelled(item)):
        name, *others = block.labels
        if others:
            raise block.position.error(f"policy {quote(name)} takes one label, its name")
        if name in seen:
            raise block.position.error(f"policy {quote(name)} is in line {seen[name].line} already")
        seen[name] = block.position
        yield name, block.body


def _labelled(item: Attribute | Block) -> Iterator[Block]:
    """`policy { golden { … } }`, as in JSON, which also has lists of such, is `policy "golden" { … }`."""
    if isinstance(item, Block) and item.labels:
        yield item
        return
    bodies = (item.body,) if isinstance(item, Block) else item.value
    for body in bodies if isinstance(bodies, tuple) else ():
        for block in body.blocks if isinstance(body, Body) else ():
            yield Block("policy", (block.type, *block.labels), block.body, block.position)


class _Reader:
    """One reading. A fault is noted and the reading goes on, so that one run shows them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: list[ConfigurationError] = []
        self.contents: list[bytes] = []

    def policy(self, name: str, written: configuration.Policy, body: Body) -> Policy:
        self._attempt("", body.position, values.policy_name, name)
        if written.pcr is None and written.events is None and written.tpm_firmware is None and written.ima is None:
            reason = f"policy {quote(name)} has no rule, and would let in whatever was booted: add pcr, events or ima"
            self.problems.append(body.position.error(reason))
        return Policy(
            name=name,
            selectors=self._attempt({}, body.find("selectors"), values.selectors, written.selectors),
            pcr=self._pcr(written.pcr) if written.pcr is not None else {},
            events=self._events(written.events, body) if written.events is not None else None,
            tpm_firmware=self._firmware(written.tpm_firmware, body) if written.tpm_firmware is not None else None,
            ima=self._ima(written.ima, body) if written.ima is not None else None,
        )

    def _pcr(self, body: Body) -> Mapping[int, frozenset[bytes]]:
        found: dict[int, frozenset[bytes]] = {}
        for item in body.items:
            name = name_of(item)
            number = int(name) if name.isascii() and name.isdecimal() and len(name) < 3 else -1
            if not 0 <= number < pcrs.COUNT:
                self._note(item, f"there is no PCR {quote(name[:20])}: they are 0 to {pcrs.COUNT - 1}")
            elif number in found:
                self._note(item, f"PCR {number} is written twice: put its values into one list")
            else:
                texts = self._texts(item)
                found[number] = frozenset(self._attempt(b"", item.position, values.digest, text) for text in texts)
        if not body.items:
            self.problems.append(body.position.error("pcr has no register"))
        return found

    def _events(self, written: configuration.Events, policy: Body) -> EventRules:
        def place(*keys: str) -> Position:
            return policy.find("events", *keys)

        def rule(key: str, digests: configuration.Digests | None, sizes: tuple[int, ...]) -> DigestRule | None:
            return self._digests(digests, lambda part: place(key, part), sizes) if digests is not None else None

        def patterns(key: str, texts: tuple[str, ...] | None) -> Patterns | None:
            return self._attempt(Patterns(()), place(key), Patterns, texts) if texts is not None else None

        banks = tuple(pcrs.BANKS.values())
        variables = (
            ("PK", written.pk, _SHA256),
            ("KEK", written.kek, _SHA256),
            ("db", written.db, _SHA256),
            ("dbx", written.dbx, _SHA256),
            ("MokList", written.mok_list, banks),
            ("MokListX", written.mok_list_x, banks),
            ("SbatLevel", written.sbat_level, _SHA256),
        )
        rules = EventRules(
            secure_boot=written.secure_boot,
            variables={
                name: found for name, part, sizes in variables if (found := rule(name, part, sizes)) is not None
            },
            authorities=rule("authorities", written.authorities, _SHA256),
            drivers=rule("drivers", written.drivers, banks),
            images=rule("images", written.images, banks),
            files=rule("files", written.files, banks),
            command_line=patterns("command_line", written.command_line),
            firmware_version=patterns("firmware_version", written.firmware_version),
        )
        if written == configuration.Events():
            self.problems.append(place().error("events has no rule: add secure_boot = true, or take it out"))
        return rules

    def _digests(
        self, written: configuration.Digests, place: Callable[[str], Position], sizes: tuple[int, ...]
    ) -> DigestRule:
        def all_of(part: str, texts: tuple[str, ...]) -> frozenset[bytes]:
            return frozenset(self._attempt(b"", place(part), values.digest, text, sizes) for text in texts)

        if written == configuration.Digests():
            reason = "it asks for nothing: use require, require_any, allow_only or forbid"
            self.problems.append(place("").error(reason))
        return DigestRule(
            require=all_of("require", written.require),
            require_any=all_of("require_any", written.require_any),
            allow_only=all_of("allow_only", written.allow_only) if written.allow_only is not None else None,
            forbid=all_of("forbid", written.forbid),
        )

    def _firmware(self, written: configuration.TpmFirmware, policy: Body) -> FirmwareRule:
        def version(text: str, key: str) -> int:
            return self._attempt(0, policy.find("tpm_firmware", key), values.firmware_version, text)

        if not written.minimum and not written.allow:
            reason = "tpm_firmware has no rule: use minimum or allow"
            self.problems.append(policy.find("tpm_firmware").error(reason))
        return FirmwareRule(
            minimum=version(written.minimum, "minimum") if written.minimum else None,
            allow=frozenset(version(text, "allow") for text in written.allow),
        )

    def _ima(self, written: configuration.Ima, policy: Body) -> ImaRules:
        allowed: allow_lists.Allowed = {}
        for item in written.allow.items if written.allow is not None else ():
            for text in self._texts(item):
                self._attempt(None, item.position, allow_lists.add, allowed, name_of(item), text)
        if written.allow_file:
            path, place = self._folder / written.allow_file, policy.find("ima", "allow_file")
            self.contents.append(self._attempt(b"", place, allow_lists.load, path, allowed))
        keys = self._keys(written.signed_by, policy.find("ima", "signed_by")) if written.signed_by else None
        if not (allowed or written.exclude or written.signed_by or self.problems):
            reason = "ima lets no file run: give it allow, allow_file or signed_by"
            self.problems.append(policy.find("ima").error(reason))
        return ImaRules(
            allow=allowed,
            exclude=self._attempt(Patterns(()), policy.find("ima", "exclude"), Patterns, written.exclude),
            keys=keys,
            allow_violations=written.violations == "allow",
        )

    def _keys(self, paths: tuple[str, ...], place: Position) -> Keys | None:
        from attestors.tpm.ima import signatures  # only where files are signed

        contents: list[bytes] = []
        for name in paths:
            path = self._folder / name
            try:
                with path.open("rb") as file:
                    contents.append(file.read(_KEY_LIMIT))
                signatures.Keys.load(contents[-1:])
            except OSError as error:
                self.problems.append(place.error(f"signed_by: cannot read {path}: {error.strerror}"))
            except InvalidArgument as error:
                self.problems.append(place.error(f"signed_by: {path}: {error}"))
        self.contents += contents
        return self._attempt(None, place, signatures.Keys.load, contents) if not self.problems else None

    def _texts(self, item: Attribute | Block) -> list[str]:
        """The texts of `name = "…"` or `name = ["…", …]`."""
        value = item.value if isinstance(item, Attribute) else None
        found = value if isinstance(value, tuple) else (value,)
        texts = [text for text in found if isinstance(text, str)]
        if not texts or len(texts) != len(found):
            self._note(item, f"{name_of(item)}: expected a text, or a list of texts")
        return texts

    def _attempt(self, stand_in: T, place: Position, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except ConfigurationError as error:
            self.problems.append(error)
        except InvalidArgument as error:
            self.problems.append(place.error(str(error)))
        return stand_in

    def _note(self, item: Attribute | Block, reason: str) -> None:
        self.problems.append(item.position.error(reason))
