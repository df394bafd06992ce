"""A check of arguments that are names; raises ConfigError with the argument's name and value."""

from __future__ import annotations

from mmrlhf.errors import ConfigError


def require_choice(owner: str, choices: tuple[str, ...], **settings: object) -> None:
    """Refuse settings that are not one of the listed names."""
    for name, value in settings.items():
        if value not in choices:
            raise ConfigError(
                f"{owner} does not know this {name}", given=f"{name}={value}", expected="one of " + ", ".join(choices)
            )
