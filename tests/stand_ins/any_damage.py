"""Damage to the bytes of any file, for hypothesis: a few small steps, which reach far into a parser."""

from __future__ import annotations

from hypothesis import strategies as st

Change = tuple[str, int, int, bytes]
changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "zero", "insert", "drop", "copy"]),
        st.integers(0, 10_000),
        st.integers(0, 10_000),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=6,
)


def changed(data: bytes, steps: list[Change]) -> bytes:
    """Bytes after some damage; positions count from the front, where headers are, or anywhere."""
    damaged = bytearray(data)
    for kind, one, two, noise in steps:
        start = one % max(1, min(len(damaged), 200 if two % 2 else len(damaged)))
        match kind:
            case "flip":
                damaged[start : start + 1] = bytes(byte ^ noise[0] for byte in damaged[start : start + 1])
            case "cut":
                del damaged[start:]
            case "zero":
                damaged[start : start + len(noise)] = bytes(len(damaged[start : start + len(noise)]))
            case "insert":
                damaged[start:start] = noise
            case "drop":
                del damaged[start : start + len(noise)]
            case "copy":
                damaged[start:start] = damaged[two % (len(damaged) + 1) :][:64]
    return bytes(damaged)
