"""``ckptmgr show``: what is in a checkpoint, without reading a tensor."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ckptmgr import BackendNotFoundError, Checkpoint, MissingDependencyError, TensorSpec, backend, skeleton
from ckptmgr.cli.output import AsJSON, counted, duration, emit, emit_json, metrics, printable, rate, size, step_json, when
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, StepNumber, TargetURL, Template, checkpoint
from ckptmgr.step import JSON

VALUE_WIDTH = 40  # characters shown of a plain value
METADATA_WIDTH = 200  # characters shown of what one key of the metadata has


class Line(NamedTuple):
    """One line of the tree: an indented key, and what is there or below."""

    key: str
    kind: str = ""  # dtype of a tensor, type of a plain value, nothing for a branch
    value: str = ""  # shape of a tensor
    nbytes: int | None = None


def show(
    url: TargetURL,
    step: StepNumber = None,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    as_json: AsJSON = False,
) -> None:
    """Show what is in a checkpoint: tensors, metrics, metadata.

    Each tensor with dtype, shape and size. No tensor is read.
    """
    with checkpoint(url, step, template, storage) as opened:
        if as_json:
            emit_json(_document(opened))
            return
        for title, value in _facts(opened):
            emit(f"{title:<9} {value}")
        _emit_tree(lines(tree(opened)))


def tree(opened: Checkpoint) -> Any:
    """The state with a `TensorSpec` for each tensor; of a file without a skeleton, what the names spell."""
    if opened.skeleton is None:
        return nested(opened.specs)

    def leaf(path: skeleton.Path, node: Any) -> Any:
        if not isinstance(node, skeleton.TensorNode):
            return Line("", node.kind)
        name = opened.aliases.get(node.name)
        return opened.specs[node.name] if name is None else Line("", "tied to", name)

    return skeleton.decode(opened.skeleton, leaf)


def nested(specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """The tree that names spell: joined by ``/``, or by ``.`` where no name has a ``/``.

    Keys of branches end in the joint, so that a tensor and a branch may have the same name.
    """
    joint = "/" if any("/" in name for name in specs) else "."
    made: dict[str, Any] = {}
    for name, spec in specs.items():
        *above, last = name.split(joint)
        branch = made
        for key in above:
            branch = branch.setdefault(key + joint, {})
        branch[last] = spec
    return made


def lines(node: Any, key: str = "", indent: str = "") -> list[Line]:
    """The lines of a tree, parents before children; a parent has the size of all tensors under it."""
    if isinstance(node, TensorSpec):
        return [Line(indent + key, node.dtype, "x".join(map(str, node.shape)) or "scalar", node.nbytes)]
    if isinstance(node, Line):
        return [node._replace(key=indent + key)]
    if not isinstance(node, Mapping | list | tuple):
        text = repr(node)
        return [Line(indent + key, type(node).__name__, text if len(text) <= VALUE_WIDTH else f"{text[:VALUE_WIDTH]}...")]
    items: Iterable[tuple[Any, Any]] = node.items() if isinstance(node, Mapping) else enumerate(node)
    deeper = indent + "  " if key else indent
    below = [line for name, item in items for line in lines(item, str(name), deeper)]
    total = sum(line.nbytes or 0 for line in below if line.kind)
    name = key if key.endswith((".", "/")) else f"{key}/"
    return [Line(indent + name, nbytes=total), *below] if key else below


def _emit_tree(made: list[Line]) -> None:
    rows = [
        (printable(line.key), line.kind, printable(line.value), "" if line.nbytes is None else size(line.nbytes)) for line in made
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for key, kind, value, nbytes in rows:
        emit(f"{key:<{widths[0]}}  {kind:<{widths[1]}}  {value:<{widths[2]}}  {nbytes:>{widths[3]}}".rstrip())


def _facts(opened: Checkpoint) -> Iterator[tuple[str, str]]:
    info = opened.info
    if info is not None:
        yield "step", str(info.step)
        yield "saved", f"{when(info.created)}  by {'another tool (foreign)' if info.is_foreign else f'run {info.run}'}"
        yield "path", info.path
        if info.stats:
            yield "took", f"{duration(info.stats.written)}  blocked {duration(info.stats.blocking)}  wrote {rate(info)}"
        if info.pins:
            yield "pins", " ".join(sorted(info.pins))
    yield "backend", opened.backend
    yield "size", f"{size(opened.nbytes)} in {counted(len(opened.specs), 'tensor')}"
    if opened.metrics:
        yield "metrics", metrics(opened.metrics)
    yield from _described(opened)
    yield from (("metadata", f"{key}: {_cut(value)}") for key, value in opened.metadata.items())
    if beside := [name for name in opened.blobs if name not in opened.unreadable]:
        yield "beside", " ".join(beside)
    yield from (("NOT READ", f"{name} ({what})") for name, what in opened.unreadable.items())
    if opened.assets:
        yield "assets", " ".join(opened.assets)


def _described(opened: Checkpoint) -> Sequence[tuple[str, str]]:
    """What the format makes of its files' metadata; nothing if it cannot be used here, as a step of a run does not need it."""
    try:
        found = backend.find(opened.backend)
    except (BackendNotFoundError, MissingDependencyError):
        return ()
    return found.describe(opened.metadata) if isinstance(found, backend.Described) else ()


def _cut(value: JSON) -> str:
    text = str(value)
    return text if len(text) <= METADATA_WIDTH else f"{text[:METADATA_WIDTH]}... ({len(text)} characters; --json has all)"


def _document(opened: Checkpoint) -> dict[str, Any]:
    return {
        "step": None if opened.info is None else step_json(opened.info),
        "backend": opened.backend,
        "nbytes": opened.nbytes,
        "metrics": dict(opened.metrics),
        "metadata": dict(opened.metadata),
        "assets": list(opened.assets),
        "aliases": dict(opened.aliases),
        "blobs": [*opened.blobs],
        "unreadable": dict(opened.unreadable),
        "tensors": {
            name: {"dtype": spec.dtype, "shape": list(spec.shape), "nbytes": spec.nbytes} for name, spec in opened.specs.items()
        },
    }
