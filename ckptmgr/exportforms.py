"""What Keras, TensorFlow, Hugging Face and PyTorch expect of a checkpoint by name: files, what is in them, and beside them.

The law: it is decided here and done elsewhere; nothing is written, and of the source only small files are read.
"""

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from ckptmgr import backend as backends
from ckptmgr import choosing, kerasfiles
from ckptmgr.backend import Backend, Formed
from ckptmgr.carrying import Baggage
from ckptmgr.checkpoint import Checkpoint
from ckptmgr.choosing import Choice
from ckptmgr.files import target
from ckptmgr.foreign import WEIGHTS
from ckptmgr.naming import parse_foreign
from ckptmgr.storage import Folder

Tool: TypeAlias = Literal["keras", "tf", "hf", "torch"]
TOOLS: tuple[Tool, ...] = get_args(Tool)
FLAT: tuple[Tool, ...] = ("hf", "torch")  # with a config and a tokenizer beside the weights
SHARD = "5GB"  # as huggingface_hub has it

_ENDINGS: Mapping[Tool, tuple[str, ...]] = {
    "keras": kerasfiles.ENDINGS,
    "tf": (".ckpt",),
    "hf": (".safetensors",),
    "torch": (".pt", ".pth", ".bin"),
}
_BACKENDS: Mapping[Tool, str] = {"keras": "hdf5", "tf": "tf_bundle", "hf": "safetensors", "torch": "torch"}
_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_HF_FILES = (  # that transformers and tokenizers look for beside weights
    _CONFIG, _ADAPTER, "generation_config.json", "*processor_config.json", "chat_template.*", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.*", "tokenizer_config.json", "vocab.*", "merges.txt", "*.spm", "*.model", "*.tiktoken",
)  # fmt: skip
_WEIGHTS = re.compile(rf"(?:{'|'.join(WEIGHTS)})(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
_MOST_NBYTES = 256 << 20  # of a file beside weights
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """What a tool expects. ``name`` is the file in a folder, ``is_flat`` whether it holds tensors alone, by names with dots.

    ``bags`` go into the files and ``beside`` lies beside them; ``lost`` is what the tool has no place for. ``max_file_nbytes``
    cuts tensors into several files.
    """

    tool: Tool
    name: str
    bags: Baggage
    is_flat: bool = False
    beside: Mapping[str, bytes] | None = None
    lost: Mapping[str, str] | None = None
    max_file_nbytes: int | None = None

    def place(self, dst: str | os.PathLike[str], options: Mapping[str, Any] | None) -> tuple[Backend, Folder, str]:
        """The format, the folder and the stem of the files at ``dst``: a folder for them, or one file's name.

        Raises:
            ValueError: an ending that the tool does not know.
        """
        text = os.fspath(dst).replace(os.sep, "/")
        name = text if is_file(text, self.tool) else f"{text.rstrip('/')}/{self.name}"
        backend = backends.find(_BACKENDS[self.tool])
        backend = backend.for_file(name) if isinstance(backend, Formed) else backend
        return backend, *target(name, backend, options)


def is_file(dst: str, tool: Tool) -> bool:
    """Whether ``dst`` names a file for the tool, and not a folder."""
    return dst.endswith(_ENDINGS[tool]) and not os.path.isdir(os.path.expanduser(dst))


def choice(tool: Tool, names: Sequence[str], select: Sequence[str] | str | None, *, strip: bool) -> Choice:
    """Which part of a state of these names the tool gets. Raises ValueError, if that is not plain."""
    if select is not None:
        return choosing.by_globs(names, select, strip=strip)
    if tool == "tf":
        return Choice()
    chosen = choosing.of_keras(names) if tool == "keras" else choosing.of_model(names)
    return chosen if strip else chosen._replace(prefix="")


def form(tool: Tool, bags: Baggage, *, step: int | None, is_whole: bool, is_named: bool, shard: int | str | None) -> Form:
    """The form for what else a source has. ``is_whole``: it is a state, not weights; ``is_named``: a file was asked for."""
    most = None if shard is None else nbytes(shard)
    if tool == "tf":
        made = Form(tool, "ckpt" if step is None else f"ckpt-{step}", replace(bags, assets={}), max_file_nbytes=most)
    elif tool == "keras":
        kept = kerasfiles.kept(bags)
        is_model = {"config", "model_config"} & kept.metadata.keys()
        made = Form(tool, "model.keras" if is_model else "model.weights.h5", kept, max_file_nbytes=most)
    elif tool == "torch" and is_whole:
        made = Form(tool, "checkpoint.pt", replace(bags, blobs={}, assets={}), max_file_nbytes=most)
    else:
        beside = {} if is_named else {name: data for name, data in bags.assets.items() if _is_hugging(name, data)}
        is_adapter = _ADAPTER in beside and _CONFIG not in beside
        names = {"hf": "adapter_model.safetensors" if is_adapter else "model.safetensors"}
        names["torch"] = "adapter_model.bin" if is_adapter else "pytorch_model.bin"
        metadata = {"format": "pt"} if tool == "hf" else {}
        most = nbytes(SHARD) if shard is None and not is_named else most
        made = Form(tool, names[tool], Baggage(metadata), True, beside, None, most)
    return replace(made, lost=_lost(tool, bags, made, is_named=is_named))


def neighbours(opened: Checkpoint) -> tuple[dict[str, bytes], dict[str, str]]:
    """What Transformers saved beside weights: config, tokenizer and the like; and what of it is left, with the reason.

    Empty for a step of ckptmgr's, which has assets, and for files that have not the names of such weights.
    """
    source = opened.source
    files = {(extent.folder, extent.file) for name in source.specs for extent in source.extents(name)}
    folders = {folder for folder, _ in files}
    if opened.files or len(folders) != 1 or not all(_WEIGHTS.fullmatch(file) for _, file in files):
        return {}, {}
    [folder] = folders
    heads = {name: head for name, head in folder.list().files.items() if _is_for_hugging(name)}
    large = {name for name, head in heads.items() if head.nbytes > _MOST_NBYTES}
    found = {name: folder.read_range(name, 0, head.nbytes) for name, head in heads.items() if name not in large}
    return found, {f"asset {name!r}": f"more than {_MOST_NBYTES >> 20} MiB" for name in large}


def step_of(location: str) -> int | None:
    """The step that the name of a checkpoint means, if it means one."""
    name = location.rstrip("/").rpartition("/")[2]
    found = (parse_foreign(name[:end] if end > 0 else name) for end in (0, name.find(".")))
    return next((step for step in found if step is not None), None)


def nbytes(size: int | str) -> int:
    """A size in bytes, given so or as ``"5GB"`` or ``"200MiB"``. Raises ValueError."""
    if isinstance(size, int):
        return size
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        raise ValueError(f"{size!r} is no size: say a number of bytes, or one with MB, GB, MiB or GiB, such as '5GB'")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " KMGT".index(found[2].upper() or " "))


def _is_hugging(name: str, data: bytes) -> bool:
    return _is_for_hugging(name) and not (name == _CONFIG and kerasfiles.is_config(data))


def _is_for_hugging(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in _HF_FILES)


def _lost(tool: Tool, bags: Baggage, form: Form, *, is_named: bool) -> dict[str, str]:
    """What is neither in the files nor beside them, with the reason."""
    used = {*(form.beside or {})}
    if tool == "keras":
        used |= kerasfiles.used(bags, form.bags)
    reason = "the file was asked for alone" if is_named and form.is_flat else f"files for {tool} have no place for it"
    lost = {f"asset {name!r}": reason for name in bags.assets if name not in used}
    lost |= {f"metadata {key!r}": reason for key in bags.metadata if key not in form.bags.metadata and key != kerasfiles.KERAS}
    lost |= {f"metric {name!r}": reason for name in bags.metrics if name not in form.bags.metrics}
    lost |= {f"blob {name!r}": reason for name in bags.blobs if name not in form.bags.blobs}
    if tool == "hf" and not is_named and not {_CONFIG, _ADAPTER} & {*(form.beside or {})}:
        lost.setdefault(f"asset {_CONFIG!r}", "the source has none, and transformers asks for one beside the weights")
    return lost
