"""An operator who prepares and activates authorities all day, and knows which of them must be active after a crash."""

from __future__ import annotations

from functools import partial

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from tests.simulators.day import Day
from transport.status import Code, RpcError

SERVICE = "/spire.api.server.localauthority.v1.LocalAuthority/"


class Rotations:
    """`active` has the ids that the active X.509 authority may have; more than one while an answer is missing."""

    def __init__(self, day: Day) -> None:
        self._day = day
        self.active: set[str] = set()
        self.done = 0

    async def live(self, moments: list[int]) -> None:
        """Rotate whenever so many requests were answered."""
        for moment in moments:
            await self._day.progress(moment)
            await self._rotate()

    async def check(self) -> None:
        """Hold the server to what was acknowledged, and take over what is so.

        A rotation may go on meanwhile: what the answer may say is known before or after it.
        """
        before = set(self.active)
        state = await self._state()
        known = before | self.active
        assert not known or state.active.authority_id in known, "another authority is active"
        if self.active == before:
            self.active = {state.active.authority_id}

    async def _state(self) -> api.GetX509AuthorityStateResponse:
        request = api.GetX509AuthorityStateRequest()
        return await self._day.admin_unary(
            SERVICE + "GetX509AuthorityState", request, api.GetX509AuthorityStateResponse
        )

    async def _rotate(self) -> None:
        prepare = partial(
            self._day.admin_unary,
            SERVICE + "PrepareX509Authority",
            api.PrepareX509AuthorityRequest(),
            api.PrepareX509AuthorityResponse,
        )
        prepared = (await self._day.certainly(prepare)).prepared_authority.authority_id
        self.active.add(prepared)
        activate = partial(
            self._day.admin_unary,
            SERVICE + "ActivateX509Authority",
            api.ActivateX509AuthorityRequest(authority_id=prepared),
            api.ActivateX509AuthorityResponse,
        )
        try:
            await self._day.certainly(activate)
        except RpcError as error:
            # Asked again after a crash: it was activated before that.
            state = await self._day.certainly(self._state)
            if error.code is not Code.INVALID_ARGUMENT or state.active.authority_id != prepared:
                raise
        self.active = {prepared}
        self.done += 1
