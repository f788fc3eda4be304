"""What a file that Keras wrote says of its model beside the tensors: all it takes to write such a file again.

It travels in the metadata and blobs of an opened file, or is taken from another file of the same model, a template. A model's
config alone does as well where names are those of its layers (`keras_paths.stored`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptmgr.backend import JSON, TensorSpec
from ckptmgr_hdf5 import keras_paths, keras_translating
from ckptmgr_hdf5.keras_translating import Underivable
from ckptmgr_hdf5.keras_trees import TOP_LEVEL, Legacy, Release

KERAS = "keras"  # the key in the metadata
MODEL_CONFIG, TRAINING_CONFIG = "model_config", "training_config"
CONFIG, ARCHIVE_METADATA = "config", "archive_metadata"
KEYS = (MODEL_CONFIG, TRAINING_CONFIG, CONFIG, ARCHIVE_METADATA)
_WEIGHTS, OPTIMIZER = "model_weights", "optimizer_weights"


@dataclass(frozen=True, slots=True)
class Carried:
    """See the module. ``stored`` has by name the path of each tensor in the file that it was in, in order.

    ``texts`` are the configs by their keys in the metadata. ``layer_names`` are those of the legacy layout; None if the file
    was of Keras 3's. ``kind`` is "" if there was no file, and
    "step" if names are not those of the config's layers, but those of Keras 3's groups.
    """

    kind: str
    version: str | None
    backend: str | None
    stored: Mapping[str, str]
    layer_names: Sequence[str] | None
    texts: Mapping[str, str]
    blobs: Mapping[str, bytes]

    @classmethod
    def of(cls, metadata: Mapping[str, JSON], blobs: Mapping[str, bytes], specs: Mapping[str, TensorSpec]) -> "Carried | None":
        """What metadata and blobs of an opened Keras file say; None if there is nothing of Keras.

        ``specs`` are those of the tensors, for which a config alone must tell the paths.

        Raises:
            ValueError: it is not as an opened file has it.
            Underivable: there is only a config, and it does not tell the path of one of the names.
        """
        texts = {key: text for key in KEYS if isinstance(text := metadata.get(key), str)}
        found = metadata.get(KERAS)
        if found is None:
            config = texts.get(CONFIG, texts.get(MODEL_CONFIG))
            if config is None:
                return None
            stored = keras_paths.stored(_whole(texts), specs)
            return cls("", _version(texts), None, stored, None, texts, blobs)
        paths = found.get("stored") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(paths, dict):
            raise ValueError(f"metadata[{KERAS!r}] is not what an opened Keras file has there")
        kind, layers = str(found.get("kind")), found.get("layer_names")
        return cls(
            kind,
            _text(found.get("keras_version")),
            _text(found.get("backend")),
            {name: str(path).strip("/") for name, path in paths.items()},
            [str(name) for name in layers] if isinstance(layers, list) and kind.startswith("legacy") else None,
            texts,
            blobs,
        )

    @property
    def is_old(self) -> bool:
        """Whether it is of Keras 2 or 1."""
        return self.version is not None and self.version.partition(".")[0] in ("1", "2")

    @property
    def release(self) -> Release:
        """Which Keras a file is to name."""
        return Release(self.version or "3.0.0", self.backend or "tensorflow")

    @property
    def config(self) -> dict[str, JSON]:
        """The model's config, with that of its training under ``compile_config`` or ``optimizer_config``.

        Raises:
            Underivable: there is none.
        """
        if CONFIG not in self.texts and MODEL_CONFIG not in self.texts:
            raise Underivable("anything, for there is none")
        return _whole(self.texts)

    def archive_texts(self) -> dict[str, str]:
        """The texts of a ``.keras`` archive, by the names of its members.

        Raises:
            Underivable: there is no config, or only the legacy one of a class that nobody here knows.
        """
        if CONFIG in self.texts:
            metadata = self.texts.get(ARCHIVE_METADATA, json.dumps({"keras_version": self.release.version}))
            return {"metadata.json": metadata, "config.json": self.texts[CONFIG]}
        if MODEL_CONFIG not in self.texts:
            raise Underivable("what the model is, for there is none")
        training = self.texts.get(TRAINING_CONFIG)
        return keras_translating.archive_texts(self.texts[MODEL_CONFIG], training, self.release.version)

    def legacy_texts(self) -> dict[str, str]:
        """The texts of a legacy whole-model file, by the names of its attributes.

        Raises:
            Underivable: as `archive_texts` does.
        """
        if MODEL_CONFIG in self.texts:
            return {key: self.texts[key] for key in (MODEL_CONFIG, TRAINING_CONFIG) if key in self.texts}
        if CONFIG not in self.texts:
            raise Underivable("what the model is, for there is none")
        return keras_translating.legacy_texts(self.texts[CONFIG])

    def legacy(self) -> Legacy:
        """The legacy layout that the file had.

        Raises:
            ValueError: a path that is in none of its layers.
        """
        assert self.layer_names is not None
        layers: dict[str, dict[str, str]] = {name: {} for name in self.layer_names}
        made = Legacy(layers, {}, {})
        longest = sorted([*layers, TOP_LEVEL], key=len, reverse=True)
        for name, path in self.stored.items():
            if path.startswith(f"{OPTIMIZER}/"):
                made.optimizer[path.removeprefix(f"{OPTIMIZER}/")] = name
                continue
            inner = path.removeprefix(f"{_WEIGHTS}/") if self.kind == "legacy-model" else path
            layer = next((layer for layer in longest if inner.startswith(f"{layer}/")), None)
            if layer is None:
                raise ValueError(f"tensor {name!r} was stored as {path!r}, which is in none of the model's layers")
            layers.get(layer, made.top)[inner.removeprefix(f"{layer}/")] = name
        return made


def _whole(texts: Mapping[str, str]) -> dict[str, JSON]:
    if CONFIG in texts:
        return keras_translating.parse(texts[CONFIG])
    model = keras_translating.parse(texts[MODEL_CONFIG])
    return keras_translating.parse(texts[TRAINING_CONFIG]) | model if TRAINING_CONFIG in texts else model


def _version(texts: Mapping[str, str]) -> str | None:
    return _text(keras_translating.parse(texts[ARCHIVE_METADATA]).get("keras_version")) if ARCHIVE_METADATA in texts else None


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) else None
