"""The command `serve`: a reward model behind an HTTP address, with the settings of conf/serve.yaml."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence

from mmrlhf.composition.checks import may_be_hub_id
from mmrlhf.composition.compose import compose, with_search_path
from mmrlhf.composition.config import plain_settings
from mmrlhf.composition.help_page import asks_for_help
from mmrlhf.composition.instantiate import check_declared, make
from mmrlhf.composition.listing import as_text, list_settings
from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded

# the word of the command, and the file in conf/
SERVE = "serve"
_PACKAGES = ("fastapi", "fastapi_offline", "prometheus_client", "uvicorn")
_USAGE = """mmrlhf serve reward_model=DIR [SETTING=VALUE ...]

Rewards, critiques and scores over HTTP, until SIGTERM or Ctrl-C (docs/serving.md). Settings:
"""


def serve_or_explain(words: Sequence[str], *, prepare: Callable[[], None]) -> None:
    """Serve, or print the settings for `--help`.

    Args:
        words: of the command line, behind `serve`.
        prepare: is called once everything is imported.

    Raises:
        ConfigError: other words, a setting that cannot be, or the extra `serve` is not installed.
    """
    if asks_for_help(words):
        print(_USAGE)
        print(as_text(list_settings([], SERVE)))
        return
    words = with_search_path(words)
    unknown = [word for word in words if "=" not in word]
    if unknown:
        raise ConfigError("not a setting of the server", given=" ".join(unknown), expected=_USAGE.partition("\n")[0])
    settings = plain_settings(compose(words, SERVE), "")
    del settings["_target_"]
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            "packages of the server are not installed", given=", ".join(absent), fix='pip install "mmrlhf[serve]"'
        )
    from mmrlhf.serving.service import serve  # takes seconds, which a mistake or `--help` need not wait for

    check_declared(serve, settings, "")
    settings["reward_model"] = _place_of(str(settings["reward_model"]))
    arguments = make(settings, "")
    prepare()
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    serve(**arguments)


def _place_of(name: str) -> str:
    """A folder with `~` expanded, or a hub id; raises ConfigError for what is neither."""
    folder = expanded(name)
    if not folder.exists() and not may_be_hub_id(name):
        raise ConfigError(
            "no such folder", where="reward_model", given=name, expected="a reward model's folder, or a hub id"
        )
    return str(folder) if folder.exists() else name
