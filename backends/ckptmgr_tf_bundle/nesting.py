"""Paths of a nested state for tensors that do not nest by themselves.

In an object graph, and in names split at ``/``, a tensor may stand under another tensor. In a nested state it cannot:
there a key leads to a tensor or to a container.
"""

from collections.abc import Sequence


def nested(paths: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The paths, none of which leads to or through another's tensor.

    A tensor under another one gets the rest of its path, from that one on, as one key beside it. Where even those
    meet, each tensor stands at the top under its name. ``paths`` are not empty, ``names`` differ.
    """
    found = list(paths)
    under = _under(paths)
    for at, above in under:
        found[at] = (*above[:-1], "/".join(paths[at][len(above) - 1 :]))
    if under and _under(found):
        return [(name,) for name in names]
    return found


def _under(paths: Sequence[tuple[str, ...]]) -> list[tuple[int, tuple[str, ...]]]:
    """Which path is another one, or goes through it, and the shortest such other."""
    under = []
    above = None
    # In this order a path comes right before those through it.
    for at in sorted(range(len(paths)), key=paths.__getitem__):
        path = paths[at]
        if above is not None and path[: len(above)] == above:
            under.append((at, above))
        else:
            above = path
    return under
