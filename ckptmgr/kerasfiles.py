"""What ckptmgr's callbacks for Keras say of the model whose step they saved, as files of Keras have it.

The law: nothing is guessed. Without a word of these callbacks, or of a file that Keras wrote, it stays as it is.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckptmgr import choosing
from ckptmgr.backend import Backend
from ckptmgr.carrying import Baggage
from ckptmgr.checkpoint import Checkpoint
from ckptmgr.deriving import Staged
from ckptmgr.matching import Stored
from ckptmgr.rulesets import Rules
from ckptmgr.staging import Stages, staged
from ckptmgr.step import JSON
from ckptmgr.structure import structure
from ckptmgr.tree import join

KERAS, ENDINGS = "keras", (".keras", ".weights.h5")
_CONFIGS = {"config": "config.json", "archive_metadata": "metadata.json"}
_KEYS = (KERAS, "model_config", "training_config", *_CONFIGS)
_RATE = "optimizer/learning_rate"


def is_form(backend: Backend) -> bool:
    """Whether it writes files of Keras 3's."""
    return backend.suffix in ENDINGS


def facts_of(bags: Baggage) -> Mapping[str, JSON]:
    """What ckptmgr's callbacks for Keras say of the step that they saved; empty for everything else."""
    found = bags.metadata.get(KERAS)
    return found if isinstance(found, dict) and "framework" in found else {}


def kept(bags: Baggage) -> Baggage:
    """What says how Keras saves a model: carried from a file of Keras, or in a step by its assets and facts."""
    texts = {key: value for key, value in bags.metadata.items() if key in _KEYS}
    facts = facts_of(bags)
    if not facts and not is_config(bags.assets.get(_CONFIGS["config"], b"")):
        return Baggage(texts, bags.blobs)
    files = {key: bags.assets[name] for key, name in _CONFIGS.items() if key not in texts and name in bags.assets}
    texts |= {key: data.decode("utf-8", "surrogateescape") for key, data in files.items()}
    paths = facts.get("assets")
    held = paths.items() if isinstance(paths, dict) else ()
    return Baggage(texts, {**bags.blobs, **{str(path): bags.assets[name] for name, path in held if name in bags.assets}})


def used(bags: Baggage, kept: Baggage) -> set[str]:
    """The assets that are in what is `kept`."""
    if "config" not in kept.metadata:
        return set()
    return {*_CONFIGS.values()} | {name for name, data in bags.assets.items() if data in kept.blobs.values()}


def chosen(opened: Checkpoint, bags: Baggage, rules: Rules) -> tuple[Stages, Baggage]:
    """What files of Keras have a place for of a step that ckptmgr's callbacks saved, after the rules, and all beside it.

    Raises:
        ValueError: as `staged` does.
    """
    source, skeleton = opened.source, opened.skeleton
    names = [join(path) for path in Stored(source, skeleton).leaves]
    part = structure(source, skeleton, (), choosing.of_keras(names).globs)
    stages = staged(Staged(source, part.names, part.aliases, part.paths), part.skeleton, rules.rules, rules.select)
    stages = replace(stages, left_out=[*part.left_out, *stages.left_out])
    said = kept(bags)
    rest = {name: data for name, data in bags.assets.items() if name not in used(bags, said)}
    return placed(stages, Baggage({**bags.metadata, **said.metadata}, said.blobs, bags.metrics, rest))


def placed(stages: Stages, bags: Baggage) -> tuple[Stages, Baggage]:
    """With the places of the variables in Keras' files, if it is a step that ckptmgr's callbacks saved."""
    if not (facts := facts_of(bags)):
        return stages, bags
    # Keras 2 does not count the learning rate among the variables of its optimizers.
    rate = [name for name in stages.shape.names if name == _RATE and facts["framework"] != "keras"]
    names = {name: own for name, own in stages.shape.names.items() if name not in rate}
    stages = replace(stages, shape=replace(stages.shape, names=names), left_out=[*stages.left_out, *rate])
    places = stored(_ordered(names, facts))
    told = {"kind": "step", "keras_version": facts.get("version"), "backend": facts.get("backend"), "stored": places}
    return stages, replace(bags, metadata={**bags.metadata, KERAS: told})


def _ordered(names: Iterable[str], facts: Mapping[str, JSON]) -> list[str]:
    """The names, those of the optimizer's variables in the order that the step tells of, if it does."""
    told = facts.get("optimizer")
    places = {f"optimizer/{name}": index for index, name in enumerate(told)} if isinstance(told, list) else {}
    return sorted(names, key=lambda name: places.get(name, -1))


def stored(names: Sequence[str]) -> dict[str, str]:
    """Where Keras 3 stores the variables of a model whose step ckptmgr's callbacks saved, by these names.

    They name the groups of a ``.weights.h5``, and have the variables of each in Keras' order. What no layer owns has no place.
    """
    counts: Counter[str] = Counter()
    found: dict[str, str] = {}
    for name in names:
        top, _, rest = name.partition("/")
        group = "optimizer/" if top == "optimizer" else "" if top == "vars" else name[: name.rindex("/") + 1] if rest else None
        if group is not None and top != "other":
            found[name] = f"{group}vars/{counts[group]}"
            counts[group] += 1
    return found


def is_config(data: bytes) -> bool:
    """Whether a ``config.json`` is Keras' own: of another kind than that of Hugging Face."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "class_name" in found and "model_type" not in found
