"""AI agent in a sandbox, as OCSF object ``ai_agent`` (since OCSF 1.9.0), from the sandbox's labels.

The keys of the labels are attributes of OpenTelemetry's semantic conventions for generative AI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_AGENT: Final = {
    "gen_ai.agent.name": "name",
    "gen_ai.agent.id": "uid",
    "gen_ai.agent.version": "version",
    "gen_ai.conversation.id": "instance_uid",
}
_MODEL: Final = {"gen_ai.request.model": "name", "gen_ai.provider.name": "ai_provider"}


def agent_of(labels: Iterable[str]) -> dict[str, Any] | None:
    """Return the OCSF object of the agent that the labels of a sandbox describe.

    ``labels`` are texts of the form ``key=value``. Return None without ``gen_ai.agent.name`` and
    ``gen_ai.agent.id``: OCSF requires one of them. It requires both keys of a model.
    """
    known = {key: value for key, _, value in (each.partition("=") for each in labels) if value}
    agent: dict[str, Any] = {name: known[key] for key, name in _AGENT.items() if key in known}
    if not agent.keys() & {"name", "uid"}:
        return None
    model = {name: known[key] for key, name in _MODEL.items() if key in known}
    if len(model) == len(_MODEL):
        agent["ai_model"] = model
    return agent
