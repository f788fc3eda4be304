"""TensorFlow checkpoints for ckptmgr, read and written without TensorFlow.

Source: TensorFlow's tensor_bundle, and what TensorFlow 2.21 and Keras write with it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ckptmgr.backend import Contents, Folder, Layout, LeftOut, StepInfo, TensorSource
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle import locate, statefile, writing
from ckptmgr_tf_bundle.bundle import open_bundle
from ckptmgr_tf_bundle.opening import Naming, open_source
from ckptmgr_tf_bundle.origin import Origin


@dataclass(frozen=True, slots=True)
class TFBundleBackend:
    """The format ``tf_bundle``: ``<prefix>.index`` and ``<prefix>.data-00000-of-00001`` and so on, TensorFlow's V2 checkpoints.

    ``names``: what opened tensors are called: ``"graph"``, as the objects that they belonged to (``layer/kernel``; without an
    object graph, as TensorFlow 1 called them), or ``"keys"``, as the file's own keys. ``form``: what is written: ``"object"``,
    for `tf.train.Checkpoint` and Keras' ``load_weights``, or ``"name"``, without an object graph, for TensorFlow 1's `Saver`
    and `tf.train.load_checkpoint`. ``save_counter``: whether the object graph gets the counter that
    `tf.train.Checkpoint.restore` asks for, where the state has none; without it `tf.train.Checkpoint.read` finds all it wants.

    Every dtype of TensorFlow's is held; strings too. Plain values of a state are written as 0-d tensors as well: Python's
    integers as int64, its floats as float32, text as strings. `Contents.blobs` may hold an object graph and variants of
    another TensorFlow checkpoint; others have no place in the format.

    Raises:
        ValueError: an unknown ``names`` or ``form``.
    """

    name: ClassVar[str] = "tf_bundle"
    suffix: ClassVar[str] = ""

    names: Naming = "graph"
    form: Literal["object", "name"] = "object"
    save_counter: bool = True

    def __post_init__(self) -> None:
        if self.names not in ("graph", "keys"):
            raise ValueError(f"names must be 'graph' or 'keys', not {self.names!r}")
        if self.form not in ("object", "name"):
            raise ValueError(f"form must be 'object' or 'name', not {self.form!r}")

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        """One data file for each of the contents', and the index last.

        Tensors of one file lie by item size, largest first, and otherwise in the order given: every one is aligned to its
        items.

        Raises:
            UnsupportedTensorError: a dtype or name that the format has no place for, or slices that do not cover a tensor.
            ValueError: metadata that is no JSON, or a tensor that is given twice.
        """
        return writing.layout(contents, stem=stem, is_object_based=self.form == "object", with_counter=self.save_counter)

    def left_out(self, contents: Contents) -> LeftOut:
        """Blobs that are no variants, and an object graph that is not that of these names."""
        return LeftOut(blobs=writing.left_out(contents, is_object_based=self.form == "object"))

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        """By the names of a checkpoint's files, an index also by how its first entry begins; a folder by the names in it."""
        return locate.recognizes(path, head, siblings)

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        """By prefix: its data files, and its index last."""
        return locate.file_sets(names)

    def open(self, folder: Folder, path: str) -> TensorSource:
        """A prefix, one of its files, a folder with one checkpoint or a ``checkpoint`` file (its latest), or a SavedModel's.

        The index is read and checked; what is wrong with one tensor is told when that tensor is asked for.

        Raises:
            FileNotFoundError: there is none, or it is not clear which.
            CorruptCheckpointError: a rule of the format is broken; names file and tensor.
        """
        place = locate.find(folder, path)
        file = place.prefix + locate.INDEX
        bundle = open_bundle(place.folder, place.prefix)
        return open_source(bundle, Origin(file, place.folder.location(file)), self.names)

    def run_files(self, steps: Sequence[tuple[str, StepInfo]]) -> Mapping[str, bytes]:
        """The ``checkpoint`` file, with relative paths: `tf.train.latest_checkpoint` finds the last of the steps.

        Besides it names the steps that TensorFlow itself wrote, in their order, and no other: TensorFlow's own manager takes
        over what is listed there with a time, and deletes what it need not keep. Times are there only if all steps are its own.
        """
        if not steps:
            return {}
        theirs = tuple(stem for stem, info in steps if info.is_foreign)
        times = tuple(info.created.timestamp() for _, info in steps) if len(theirs) == len(steps) else ()
        return {locate.STATE: statefile.format(statefile.State(steps[-1][0], theirs, times))}

    def run_order(self, folder: Folder) -> Sequence[str]:
        """The prefixes that the ``checkpoint`` file names, the latest last; none if it cannot be read."""
        try:
            state = locate.state_of(folder)
        except CorruptCheckpointError:
            return []
        return [] if state is None else locate.stems_in(state, folder)
