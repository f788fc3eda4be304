"""Where every byte of new Keras files lies: the legacy ``.h5``, ``.weights.h5`` in one file or several, and ``.keras``.

The law: tensors go exactly where the file had them that the names are from, or where the config of a Sequential or
Functional model puts them; what is neither is an error, and nothing is guessed. Configs and assets are carried as they are.

Source: Keras 3.15's saving_lib.py and legacy_h5_format.py; tf_keras 2.21.
"""

import json
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

from ckptmgr.backend import JSON, Box, Contents, FileLayout, Layout, Part, TensorSource, TensorSpec, zipwriting
from ckptmgr.errors import StateMismatchError, UnsupportedTensorError, shown
from ckptmgr_hdf5 import keras_carried, keras_converting, keras_matching, keras_paths, keras_trees, swapping
from ckptmgr_hdf5.encoding import GroupNode, encode
from ckptmgr_hdf5.keras_carried import KERAS, Carried
from ckptmgr_hdf5.keras_classes import class_of, own_name
from ckptmgr_hdf5.keras_translating import Underivable, optimizer_of
from ckptmgr_hdf5.keras_trees import Legacy
from ckptmgr_hdf5.source import HDF5Source
from ckptmgr_hdf5.tensors import File

Form: TypeAlias = Literal["keras-legacy", "keras-legacy-weights", "keras-weights", "keras"]
SUFFIXES: Mapping[Form, str] = {
    "keras-legacy": ".h5",
    "keras-legacy-weights": ".h5",
    "keras-weights": ".weights.h5",
    "keras": ".keras",
}
MEMBER = "model.weights.h5"
_LEGACY = ("keras-legacy", "keras-legacy-weights")
_OPTIONAL = ("optimizer/", "metrics/")  # what a model can be loaded without
_COPIED = {  # which forms the HDF5 file in a template already has
    "legacy-model": ("keras-legacy",),
    "legacy-weights": ("keras-legacy-weights",),
    "weights": ("keras-weights",),
    "archive": ("keras", "keras-weights"),
    "folder": ("keras", "keras-weights"),
}


class _Job(NamedTuple):
    """What is to be written: parts by name, and for each which file it shall be in; the form, and how files are called."""

    parts: Mapping[str, Part]
    files: Mapping[str, int]
    form: Form
    stem: str
    align: int

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: part.spec for name, part in self.parts.items()}

    @property
    def file_count(self) -> int:
        return max(self.files.values(), default=0) + 1


def layout(contents: Contents, *, form: Form, stem: str, align: int, template: TensorSource | None = None) -> Layout:
    """The files of that form. Names are those that an opened Keras file of the same model has.

    How the model was saved is taken from ``template``, an opened Keras file of it, or from what such a file has given to the
    contents' metadata; there the text of its config alone does, too. A template of the form itself is copied but for the
    tensors. The optimizer's state may be left out as a whole; in the legacy forms there is none of metrics. Only
    ``"keras-weights"`` may have several files: ``<stem>_00000.weights.h5`` and so on, and ``<stem>.weights.json``, the index.

    Raises:
        StateMismatchError: names, shapes or dtypes are not those of the model; lists every one.
        UnsupportedTensorError: a dtype that Keras has no place for there, a slice, a tied tensor, text or a plain value.
        ValueError: nothing says how the model was saved, or the config does not tell what this form needs.
    """
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {shown(get_args(Form))}, not {form!r}")
    parts, files = _checked(contents, form)
    job = _Job(parts, files, form, stem, align)
    try:
        carried = _carried(contents, template, job)
        _match(job, carried, template)
        return _planned(job, carried, template)
    except Underivable as error:
        text = f"the model's config alone does not tell {error}"
        raise ValueError(f"{text}: pass a {SUFFIXES[form]} of the same model that Keras saved as template") from error


def _checked(contents: Contents, form: Form) -> tuple[dict[str, Part], dict[str, int]]:
    """The tensors by name, each with the index of its file; all of them are whole arrays that the form can hold."""
    if contents.aliases:
        alias, name = next(iter(contents.aliases.items()))
        raise UnsupportedTensorError(f"Keras files have no tied tensors, as {alias!r} and {name!r} are: copy one", tensor=alias)
    if contents.scalars:
        name = "/".join(map(str, next(iter(contents.scalars))))
        raise UnsupportedTensorError(f"Keras files hold arrays alone, and {name!r} is a plain value", tensor=name)
    if len(contents.files) > 1 and form != "keras-weights":
        raise ValueError(f"a {SUFFIXES[form]} of Keras is a single file: do without max_file_nbytes")
    parts: dict[str, Part] = {}
    files: dict[str, int] = {}
    for index, part in ((index, part) for index, file in enumerate(contents.files) for part in file):
        problem = _problem(part, form)
        if problem is not None:
            raise UnsupportedTensorError(f"{problem}, which tensor {part.name!r} is", tensor=part.name)
        if part.name in parts:
            raise ValueError(f"tensor {part.name!r} is given twice")
        parts[part.name], files[part.name] = part, index
    return parts, files


def _problem(part: Part, form: Form) -> str | None:
    if part.box not in (None, Box.whole(part.spec.shape)):
        return "Keras files hold no slices"
    if part.spec.is_string:
        return "Keras files hold no text"
    if part.spec.dtype == "bfloat16" and form in _LEGACY:
        return "Keras cannot load its legacy layout with bfloat16 (cast it, or write '.weights.h5' or '.keras')"
    return None


def _carried(contents: Contents, template: TensorSource | None, job: _Job) -> Carried:
    source = contents if template is None else template
    carried = Carried.of(source.metadata, source.blobs, job.specs)
    if carried is not None:
        return carried
    if template is not None:
        raise ValueError("the template is no file of a Keras model")
    text = f"pass a file of it as template, or the metadata that one has when it is opened ({KERAS!r} is among it)"
    raise ValueError(f"nothing says how Keras saves this model: {text}")


def _match(job: _Job, carried: Carried, template: TensorSource | None) -> None:
    """Compares names, shapes and dtypes with what is known of the model's. What is optional may lack as a whole."""
    missing = [name for name in carried.stored if name not in job.parts]
    for prefix in _OPTIONAL:
        if not any(name.startswith(prefix) for name in job.parts):
            missing = [name for name in missing if not name.startswith(prefix)]
    unexpected = [name for name in job.parts if name not in carried.stored]
    problems = [f"{word}: {shown(names)}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names]
    problems += keras_matching.wrong(job.specs, _config(carried), template.specs if template is not None else None)
    if problems:
        text = f"the state is not what the Keras model has: {'; '.join(problems)}"
        raise StateMismatchError(text, missing=missing, unexpected=unexpected)


def _config(carried: Carried) -> dict[str, JSON]:
    """The model's config; empty if there is none, none that can be read or one by other names: then nothing is compared."""
    if carried.kind == "step":
        return {}
    try:
        return carried.config
    except (Underivable, ValueError):
        return {}


def _planned(job: _Job, carried: Carried, template: TensorSource | None) -> Layout:
    file = _same(template, carried, job)
    if file is not None:
        root = _copied(file, job, carried)
    elif job.form in _LEGACY:
        root = _legacy_tree(job, carried)
    elif job.file_count > 1:
        return _sharded(job, _groups(job, carried))
    else:
        root = keras_trees.grouped(_groups(job, carried), job.specs)
    name = f"{job.stem}{SUFFIXES[job.form]}"
    if job.form == "keras":
        return Layout((FileLayout(name, _archive(name, root, job, carried)),), zipwriting.DIGESTS)
    return Layout((FileLayout(name, _pieces(root, job)),))


def _same(template: TensorSource | None, carried: Carried, job: _Job) -> File | None:
    """The one file of a template that has this form already."""
    is_one = isinstance(template, HDF5Source) and len(template.files) == 1 and job.file_count == 1
    return (
        template.files[0] if isinstance(template, HDF5Source) and is_one and job.form in _COPIED.get(carried.kind, ()) else None
    )


def _copied(file: File, job: _Job, carried: Carried) -> GroupNode:
    """The template with other tensors in it."""
    stored = _stored(job, carried)
    dropped = [path for name, path in carried.stored.items() if name not in stored]
    if any(path.startswith(f"{keras_carried.OPTIMIZER}/") for path in dropped):
        dropped.append(keras_carried.OPTIMIZER)  # whose list of names would lead nowhere
    return swapping.copied(file, {path: name for name, path in stored.items()}, dropped, job.specs)


def _stored(job: _Job, carried: Carried) -> dict[str, str]:
    """Paths of the tensors that there are, in the model's order."""
    return {name: path for name, path in carried.stored.items() if name in job.parts}


def _groups(job: _Job, carried: Carried) -> dict[str, str]:
    """Tensors by their paths in Keras 3's layout."""
    if carried.layer_names is None:
        return {path: name for name, path in _stored(job, carried).items()}
    config = carried.config
    optimizer = optimizer_of(config)
    class_name = optimizer if isinstance(optimizer, str) else class_of(optimizer)
    return keras_converting.to_groups(_present(carried.legacy(), job), keras_paths.layers(config), class_name)


def _present(legacy: Legacy, job: _Job) -> Legacy:
    """The layout without what may lack."""
    return legacy._replace(optimizer={weight: name for weight, name in legacy.optimizer.items() if name in job.parts})


def _sharded(job: _Job, places: Mapping[str, str]) -> Layout:
    files = []
    shards: dict[str, list[str]] = {}
    for index in range(job.file_count):
        held = {path: name for path, name in places.items() if job.files[name] == index}
        files.append(FileLayout(f"{job.stem}_{index:05d}.weights.h5", _pieces(keras_trees.grouped(held, job.specs), job)))
        for group in dict.fromkeys(path.rpartition("/")[0] for path in held):
            shards.setdefault(f"/{group}", []).append(files[-1].name)
    total = float(sum(job.parts[name].nbytes for name in places.values()))
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": shards}, indent=4)
    return Layout((*files, FileLayout(f"{job.stem}.weights.json", (text.encode(),))))


def _archive(file: str, root: GroupNode, job: _Job, carried: Carried) -> zipwriting.Pieces:
    texts = carried.archive_texts()
    members = [zipwriting.Member(name, (text.encode("utf-8", "surrogatepass"),)) for name, text in texts.items()]
    members.append(zipwriting.Member(MEMBER, _pieces(root, job), is_aligned=True))
    members += [zipwriting.Member(name, (bytes(blob),)) for name, blob in carried.blobs.items()]
    return zipwriting.archive(file, members, align=job.align)


def _legacy_tree(job: _Job, carried: Carried) -> GroupNode:
    legacy = _present(carried.legacy(), job) if carried.layer_names is not None else _converted(job, carried)
    if job.form == "keras-legacy":
        return keras_trees.legacy_model(legacy, carried.release, carried.legacy_texts(), job.specs)
    if legacy.optimizer:
        names = shown([*legacy.optimizer.values()])
        raise ValueError(f"a file of legacy weights alone has no place for the optimizer's state: leave out {names}")
    return keras_trees.legacy_weights(legacy, carried.release, job.specs)


def _converted(job: _Job, carried: Carried) -> Legacy:
    config = carried.config
    optimizer = optimizer_of(config)
    name = own_name(optimizer) or (optimizer if isinstance(optimizer, str) else "optimizer")
    return keras_converting.to_legacy(_stored(job, carried), keras_paths.layers(config), name, is_old=carried.is_old)


def _pieces(root: GroupNode, job: _Job) -> tuple[bytes | Part, ...]:
    return tuple(job.parts[piece] if isinstance(piece, str) else piece for piece in encode(root, align=job.align).pieces)
