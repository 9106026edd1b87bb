"""The authorities of one kind as operators see them: their states, and what may be done in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from operations.errors import InvalidArgument
from server.ca.journal import Status
from server.ca.operating import AuthorityInfo
from server.rpc.call import Call
from server.rpc.failures import failure
from transport.router import Context
from transport.status import Code


class States:
    """The authorities of one kind, and what may be done to them. Failures are those of one call."""

    def __init__(self, call: Call, authorities: Sequence[AuthorityInfo]) -> None:
        self._log = call.log
        by_status = {each.status: each for each in authorities}
        self._by_status: Mapping[Status, AuthorityInfo] = by_status
        self._active = by_status.get(Status.ACTIVE)
        # As in SPIRE there is one beside the active one: the old one until another is prepared.
        self._other = by_status.get(Status.PREPARED) or by_status.get(Status.OLD)

    def messages(self) -> dict[str, api.AuthorityState]:
        return {each.status.value: message(each) for each in (self._active, self._other) if each is not None}

    def require_active(self) -> None:
        if self._active is None:
            raise failure(self._log, Code.UNAVAILABLE, "server is initializing")

    def require_prepared(self, authority_id: str) -> None:
        other = self._named(authority_id)
        if other.status is not Status.PREPARED:
            raise failure(self._log, Code.INTERNAL, "only Prepared authorities can be activated", _unsupported(other))

    def require_old(self, authority_id: str) -> AuthorityInfo:
        if authority_id and self._is_active(authority_id):
            raise failure(self._log, Code.INVALID_ARGUMENT, "unable to taint current local authority")
        other = self._named(authority_id)
        if other.status is not Status.OLD:
            message = "only Old local authorities can be tainted"
            raise failure(self._log, Code.INVALID_ARGUMENT, message, _unsupported(other))
        return other

    def check_revocable(self, authority_id: str) -> None:
        """Raises InvalidArgument."""
        if not authority_id:
            raise InvalidArgument("no authority ID provided")
        if self._is_active(authority_id):
            raise InvalidArgument("unable to use current authority")
        other = self._other
        if other is None or other.authority_id != authority_id or other.status is not Status.OLD:
            raise InvalidArgument("only Old local authority can be revoked")

    def check_key_revocable(self, authority_id: str, published: set[str], title: str) -> None:
        """Also one that this server knows by the bundle only. Raises InvalidArgument."""
        if not authority_id:
            raise InvalidArgument("no authority ID provided")
        if self._other is not None and self._other.authority_id == authority_id:
            if self._other.status is Status.PREPARED:
                raise InvalidArgument("unable to use a prepared key")
            return
        if self._is_active(authority_id):
            raise InvalidArgument("unable to use current authority")
        if authority_id not in published:
            raise InvalidArgument(f"no {title} authority found with provided authority ID")

    def check_upstream(self, key_id: str) -> None:
        """Whether an upstream authority signed the old authority, and no other. Raises InvalidArgument."""
        if not key_id:
            raise InvalidArgument("no subject key ID provided")
        if self._active is not None and self._active.upstream_id == key_id:
            raise InvalidArgument("unable to use upstream authority singing current authority")
        if self._other is None or self._other.upstream_id != key_id:
            raise InvalidArgument("upstream authority didn't sign the old local authority")
        if self._other.status is Status.PREPARED:
            raise InvalidArgument("only upstream authorities signing an old authority can be used")

    def _is_active(self, authority_id: str) -> bool:
        return self._active is not None and self._active.authority_id == authority_id

    def _named(self, authority_id: str) -> AuthorityInfo:
        if not authority_id:
            raise failure(self._log, Code.INVALID_ARGUMENT, "no authority ID provided")
        if self._other is None or self._other.authority_id != authority_id:
            raise failure(self._log, Code.INVALID_ARGUMENT, "unexpected authority ID")
        return self._other


def _unsupported(authority: AuthorityInfo) -> InvalidArgument:
    return InvalidArgument(f"unsupported local authority status: {authority.status.name}")


def message(authority: AuthorityInfo) -> api.AuthorityState:
    return api.AuthorityState(
        authority_id=authority.authority_id,
        expires_at=authority.expires_at,
        upstream_authority_subject_key_id=authority.upstream_id,
    )


def of_authority(context: Context, authority_id: str) -> Call:
    return naming(Call.of(context), local_authority_id=authority_id)


def naming(call: Call, **fields: str) -> Call:
    """The call with fields, where they are not empty, in its log lines and its audit line."""
    given = {name: value for name, value in fields.items() if value}
    call.note(**given)
    call.log = call.log.bind(**given)
    return call
