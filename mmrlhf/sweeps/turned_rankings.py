"""A second world beside a study's own, of the same queries with a share of its rankings turned."""

from __future__ import annotations

from collections.abc import Mapping


def turned_rankings(flip: str) -> tuple[str, str]:
    """The words that add such a world, packed as `stage:pack_turned`; who reads it is for the study to say.

    Args:
        flip: the share of rankings that are turned.
    """
    world = {"_target_": "mmrlhf.stages.world.run", "num_groups": "${scale.num_groups}", "num_warmup": "0"}
    pack = {"_target_": "mmrlhf.stages.pack.run", "root": "'stage:turned/preference'", "limit": "${scale.limit}"}
    media = {"num_frames": "${data.media.num_frames}", "sampling": "${data.media.sampling}"}
    return (
        f"+stages.turned={_node(world | {'seed': '${seed}', 'flip_rate': flip})}",
        f"+stages.pack_turned={_node(pack | media | {'importer': '${data.importer}', 'video': '${data.video}'})}",
    )


def _node(fields: Mapping[str, str]) -> str:
    """A mapping as Hydra reads it on a command line."""
    return "{" + ", ".join(f"{name}: {value}" for name, value in fields.items()) + "}"
