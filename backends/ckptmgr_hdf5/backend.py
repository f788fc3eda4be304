"""HDF5 files for ckptmgr, written and read without the HDF5 library; h5py is only needed for what others store otherwise.

Source: HDF5 File Format Specification 3.0; what h5py and Keras write.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from ckptmgr.backend import JSON, Contents, Folder, Layout, LeftOut, TensorSource
from ckptmgr.errors import shown
from ckptmgr_hdf5 import filesets, generic, keras_describing, keras_filesets, keras_writing, opening
from ckptmgr_hdf5.keras_carried import KERAS, KEYS
from ckptmgr_hdf5.keras_writing import SUFFIXES, Form

_FORMS: Mapping[str, Form] = {  # that a copy of each kind of Keras' files has
    "legacy-model": "keras-legacy",
    "legacy-weights": "keras-legacy-weights",
    "weights": "keras-weights",
    "sharded-weights": "keras-weights",
    "archive": "keras",
    "folder": "keras",
}


@dataclass(frozen=True, slots=True)
class HDF5Backend:
    """The format ``hdf5``: a group for each container of the state, a dataset for each tensor.

    Every HDF5 tool reads such a file. bfloat16 and other dtypes that HDF5 has no word for are unsigned integers there, with
    the attribute ``ckptmgr_dtype``. Plain values of the state are attributes of their groups. Names, metadata and
    `Contents.blobs` come back as they were given; long double is refused.

    ``form`` is what is written: ``"generic"`` as said, or one of Keras' layouts (`keras_writing.layout`), for which ``template``
    may be an opened Keras file of the same model. Any form is read.

    Raises:
        ValueError: an unknown ``form``, or a template for the generic one.
    """

    name: ClassVar[str] = "hdf5"

    form: Literal["generic"] | Form = "generic"
    template: TensorSource | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.form != "generic" and self.form not in SUFFIXES:
            raise ValueError(f"form must be 'generic' or one of {shown([*SUFFIXES])}, not {self.form!r}")
        if self.form == "generic" and self.template is not None:
            raise ValueError("a template is for Keras' forms alone")

    @property
    def suffix(self) -> str:
        """What the names of single files end in."""
        return ".h5" if self.form == "generic" else SUFFIXES[self.form]

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """``<stem>.h5``, or ``<stem>-00001-of-0000N.h5`` and so on, the last of which has the metadata; or Keras' files.

        Tensors lie in the order of the tree, at multiples of 8 bytes, those of 64 KiB and more at multiples of ``align``.

        Raises:
            UnsupportedTensorError: a dtype, a name, a rank or a slice that HDF5 has no place for.
            StateMismatchError: names or shapes are not those of the Keras model.
            ValueError: metadata that is no JSON, a tensor that is given twice, or nothing that says how Keras saves the model.
        """
        if self.form == "generic":
            return generic.layout(contents, stem=stem, align=align)
        return keras_writing.layout(contents, form=self.form, stem=stem, align=align, template=self.template)

    def for_file(self, name: str) -> "HDF5Backend":
        """For ``.keras`` and ``.weights.h5`` the form of Keras' that ends so; itself for all others."""
        endings = {suffix: form for form, suffix in SUFFIXES.items() if suffix != ".h5" and name.endswith(suffix)}
        return replace(self, form=endings[max(endings, key=len)]) if endings and self.form == "generic" else self

    def left_out(self, contents: Contents) -> LeftOut:
        """Nothing in the generic form; in Keras' forms all that is not of Keras."""
        if self.form == "generic":
            return LeftOut()
        blobs = frozenset() if self.form == "keras" else frozenset(contents.blobs)
        return LeftOut(frozenset(contents.metadata.keys() - {KERAS, *KEYS}), blobs)

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """By the signature of HDF5 (behind a user block, too), or by what Keras writes first; a folder by the names in it."""
        return opening.recognizes(path, head, siblings)

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """By stem, which is a name without the form's suffix. The generic form tells of Keras' files as well."""
        return filesets.file_sets(names) if self.form == "generic" else keras_filesets.file_sets(names, self.suffix)

    def open(self, folder: Folder, path: str) -> TensorSource:
        """A file, any one of a set, or a folder with one checkpoint. No element of a dataset is read.

        Raises:
            FileNotFoundError: there is nothing of the kind.
            CorruptCheckpointError: it is damaged, or a file of the set is missing; names file and object.
            UnsafeCheckpointError: it has a soft or external link, or data in other files.
            MissingDependencyError: it has what only h5py can read, which is not installed.
        """
        return opening.open_path(folder, path)

    def with_template(self, template: TensorSource) -> "HDF5Backend":
        """Writes files of Keras like that one, as a single file: of shards ``.weights.h5``, of a folder ``.keras``.

        Raises:
            ValueError: it is no file of Keras'.
        """
        found = template.metadata.get("keras")
        form = _FORMS.get(str(found.get("kind"))) if isinstance(found, dict) else None
        if form is None:
            raise ValueError("the template is no file that Keras saved: load it, change the arrays, and save it anew")
        return replace(self, form=form, template=template)

    def describe(self, metadata: Mapping[str, JSON]) -> Sequence[tuple[str, str]]:
        """Of a model of Keras: its kind and version, layers with their classes, loss and metrics, optimizer."""
        return keras_describing.describe(metadata)
