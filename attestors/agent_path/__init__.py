"""Agent path templates: how operators name agents by what attestation found out of their nodes.

The language is that of Go's text/template with the functions that SPIRE allows (a part of sprig's), as far as a path
can need it: no nested templates. What cannot work is refused when a template is read, not at each attestation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attestors.agent_path.template import Template
from attestors.agent_path.values import Fields, Texts, Value
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument
from operations.quoting import quote

__all__ = ["Fields", "Template", "Texts", "Value", "agent_id", "chosen"]


def chosen(text: str, default: str, fields: Collection[str]) -> Template:
    """The setting agent_path_template, or the attestor's own template where it is empty; `fields` are what it has.

    Raises InvalidArgument for a template that cannot work, or asks for a field that does not exist.
    """
    try:
        template = Template.parse(text or default)
        if unknown := template.root_fields().difference(fields):
            raise InvalidArgument(f"there is no {quote(min(unknown))}; there are {', '.join(sorted(fields))}")
    except InvalidArgument as error:
        raise InvalidArgument(f"agent_path_template {quote(text)}: {error}") from error
    return template


def agent_id(trust_domain: TrustDomain, template: Template, data: Mapping[str, Value]) -> SpiffeId:
    """The agent's ID: /spire/agent and the path that the template makes. Raises InvalidArgument."""
    suffix = template.render(data)
    try:
        SpiffeId(trust_domain, suffix or "/")
        return SpiffeId(trust_domain, f"/spire/agent{suffix}")
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid agent path suffix {quote(suffix)}: {error}") from error
