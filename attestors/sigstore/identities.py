"""Who may sign: `allowed_identities`, an issuer and a subject each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509

from attestors.sigstore import certificates
from attestors.sigstore.configuration import is_pattern
from operations.errors import Refused
from operations.quoting import quote

_Matches = Callable[[str], bool]
_MOST_SHOWN = 5
_LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class _Rule:
    """An empty issuer or subject is any."""

    issuer: _Matches
    subject: _Matches

    @property
    def any_subject(self) -> bool:
        return self.subject is _anything


class Identities:
    """Without any, every identity will do."""

    def __init__(self, allowed: Mapping[str, Sequence[str]]) -> None:
        """Raises InvalidArgument for a malformed regular expression."""
        self._rules = [
            _Rule(_matcher(issuer), _matcher(subject)) for issuer, subjects in allowed.items() for subject in subjects
        ]

    def require(self, certificate: x509.Certificate) -> None:
        """Raises Refused when the certificate is of nobody who may sign."""
        if not self._rules:
            return
        issuer, subjects = certificates.issuer(certificate), certificates.names(certificate)
        if any(_allows(rule, issuer, subjects) for rule in self._rules):
            return
        shown = ", ".join(map(_shown, subjects[:_MOST_SHOWN]))
        raise Refused(
            "none of the expected identities matched what was in the certificate, "
            f"got subjects [{shown}] with issuer {_shown(issuer)}"
        )


def _allows(rule: _Rule, issuer: str, subjects: Sequence[str]) -> bool:
    return rule.issuer(issuer) and (rule.any_subject or any(map(rule.subject, subjects)))


def _matcher(text: str) -> _Matches:
    if not text:
        return _anything
    if not is_pattern(text):
        return text.__eq__
    from attestors.agent_path.regexes import compiled  # with patterns only

    pattern = compiled(text)
    return lambda value: pattern.search(value) is not None


def _shown(text: str) -> str:
    short = text[:_LONGEST_SHOWN]
    return short if short.isprintable() else quote(short)


def _anything(_: str) -> bool:
    return True
