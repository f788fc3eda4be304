"""From the entries of a bundle to a source of named tensors: by the object graph, by the keys, and by what ckptmgr carries."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle import carriage, graph
from ckptmgr_tf_bundle.bundle import Bundle
from ckptmgr_tf_bundle.carriage import Carriage
from ckptmgr_tf_bundle.keys import GRAPH_KEY
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.source import BundleSource

Naming: TypeAlias = Literal["graph", "keys"]


def open_source(bundle: Bundle, origin: Origin, naming: Naming) -> BundleSource:
    """The bundle's tensors: under the names of its object graph (its keys, if it has none), or with ``"keys"`` under its keys.

    Raises:
        CorruptCheckpointError: the object graph, or what ckptmgr wrote beside it, cannot be read.
    """
    carried = _carried(bundle, origin)
    if carried is not None:
        bundle = replace(bundle, is_exact=True)
    keys = [*bundle.specs, *bundle.variants]
    if naming == "keys":
        same = bundle.shared(bundle.specs)
        return BundleSource(
            bundle, {key: key for key in bundle.specs if key not in same}, same, variants={key: key for key in bundle.variants}
        )
    carried = carried or Carriage()
    hidden = {GRAPH_KEY, carriage.KEY, *carried.added}
    names = _names(bundle, [key for key in keys if key not in hidden], origin, len(hidden & {*keys}))
    final = {name: carried.names.get(key, name) for name, key in names.keys.items()}
    if len(set(final.values())) < len(final):
        raise origin.corrupt("two tensors have one name", carriage.KEY)
    by_name = {final[name]: key for name, key in names.keys.items()}
    tied = _tied(bundle, carried.aliases, by_name, origin)
    same = bundle.shared(key for name, key in by_name.items() if name not in tied and key not in bundle.variants)
    by_key = {key: name for name, key in by_name.items()}
    tied = {**tied, **{by_key[key]: by_key[first] for key, first in same.items()}}
    aliases = {alias: tied.get(final[name], final[name]) for alias, name in names.aliases.items() if alias not in by_name}
    return BundleSource(
        bundle,
        {name: key for name, key in by_name.items() if name not in tied and key not in bundle.variants},
        {**aliases, **tied},
        {final.get(name, name): path for name, path in names.paths.items()},
        carried.metadata,
        {name: key for name, key in by_name.items() if key in bundle.variants},
    )


def _names(bundle: Bundle, keys: list[str], origin: Origin, beside: int) -> graph.Names:
    if GRAPH_KEY not in bundle.specs:
        return graph.from_keys(keys)
    try:
        most = graph.max_nbytes(len(keys) + beside)
        return graph.from_graph(_string(bundle, GRAPH_KEY, origin, most), keys, origin, beside=beside)
    except CorruptCheckpointError as error:
        error.add_note("its tensors can still be read by their keys: open it with backend=TFBundleBackend(names='keys')")
        raise


def _carried(bundle: Bundle, origin: Origin) -> Carriage | None:
    if carriage.KEY not in bundle.specs:
        return None
    return carriage.decode(_string(bundle, carriage.KEY, origin, carriage.MAX_NBYTES), origin)


def _string(bundle: Bundle, key: str, origin: Origin, most: int) -> bytes:
    spec = bundle.specs[key]
    if not spec.is_string or spec.shape:
        raise origin.corrupt(f"it is {spec.dtype} of shape {spec.shape}, not one string", key)
    if (nbytes := bundle.nbytes(key)) > most:
        raise origin.corrupt(f"it has {nbytes} bytes, and at most {most} are read", key)
    return bytes(bundle.read(key).item())


def _tied(bundle: Bundle, aliases: Mapping[str, str], keys: Mapping[str, str], origin: Origin) -> Mapping[str, str]:
    """The further names of tied tensors; each has an entry of its own, which must be its tensor's."""
    for alias, name in aliases.items():
        if alias not in keys or name not in keys or name in aliases:
            raise origin.corrupt(f"it ties {alias!r} to {name!r}, which are no two tensors", carriage.KEY)
        try:
            is_same = bundle.is_same(keys[alias], keys[name])
        except CorruptCheckpointError:
            continue  # one damaged entry keeps nobody from the others; it tells when it is asked for
        if not is_same:
            raise origin.corrupt(f"it is tied to {name!r}, and the two lie in different places", alias)
    return aliases
