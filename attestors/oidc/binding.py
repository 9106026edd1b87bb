"""Whose a token is: who can read a token can show it, unless it says itself which process it is for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from attestors.oidc import claims
from attestors.oidc.claims import Claims
from attestors.oidc.configuration import Issuer
from operations.errors import Refused

POD = "kubernetes.io.pod.uid"
"""Of a service account's token that Kubernetes made for a pod (KEP-1205)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """`pod_uid` is empty for a process outside of pods."""

    uid: int
    pod_uid: str = ""


def names_pod(said: Claims) -> bool:
    return claims.find(said, POD) is not None


def require_bound(said: Claims, issuer: Issuer, caller: Caller) -> None:
    """Raise Refused for a token of another pod or user, and, where that is required, of nobody in particular."""
    pod = claims.find(said, POD)
    if pod is not None and (not caller.pod_uid or pod != caller.pod_uid):
        where = f"is of pod {caller.pod_uid}" if caller.pod_uid else "is of no pod"
        raise Refused(f"the token is for pod {str(pod)[:100]}, and the process that has it {where}")
    user = claims.find(said, issuer.uid_claim) if issuer.uid_claim else None
    if user is not None and str(user) != str(caller.uid):
        raise Refused(f"the token is for user {str(user)[:100]}, and the process that has it is of user {caller.uid}")
    if issuer.require_binding and pod is None and user is None:
        raise Refused("the token does not say which pod or user it is for, which require_binding asks of its issuer")
