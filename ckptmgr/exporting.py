"""A step, or any checkpoint, as the files that one tool expects by name: what `convert` writes, with that tool's own names.

The law is that of `converting`. The file that shows the others to the tool comes last: the weights, their index, or
TensorFlow's ``checkpoint``, which tells of all steps that were exported into a folder.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ckptmgr import carrying, exportforms, kerasfiles, partial
from ckptmgr.backend import Backend, RunFiles
from ckptmgr.carrying import Baggage
from ckptmgr.checkpoint import Checkpoint
from ckptmgr.choosing import Choice
from ckptmgr.converting import Job, Place, Taken, rules_of
from ckptmgr.convertreport import ConvertReport
from ckptmgr.deriving import Staged
from ckptmgr.errors import StepNotFoundError, shown
from ckptmgr.exportforms import TOOLS, Form, Tool
from ckptmgr.files import open_checkpoint
from ckptmgr.layout import Contents
from ckptmgr.manager import CheckpointManager
from ckptmgr.manifest import MANIFEST, parse_attempt
from ckptmgr.matching import Stored
from ckptmgr.naming import StepNaming
from ckptmgr.rulesets import Given, Rules
from ckptmgr.staging import Stages, staged
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder, Head
from ckptmgr.streaming import BUDGET_NBYTES
from ckptmgr.structure import Structure, structure
from ckptmgr.transfer import Progress
from ckptmgr.tree import join

DEFAULT_NAMING = StepNaming()
COUNTER = ("save_counter",)  # after which `tf.train.Checkpoint.save` numbers the next one
_ROUNDS = 5  # of looking again whether somebody else has changed hints meanwhile
_ALONE = "files of weights hold tensors alone"


def export(
    src: str | os.PathLike[str] | Checkpoint | CheckpointManager,
    dst: str | os.PathLike[str],
    *,
    to: Tool,
    step: int | None = None,
    select: Sequence[str] | str | None = None,
    strip: bool = True,
    rename: "Given | Sequence[Given]" = (),
    cast: Mapping[str, str] | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
    naming: StepNaming = DEFAULT_NAMING,
    src_options: Mapping[str, Any] | None = None,
    dst_options: Mapping[str, Any] | None = None,
    budget: int = BUDGET_NBYTES,
    progress: Progress | None = None,
) -> ConvertReport:
    """Writes a step, or another checkpoint, as the files that a tool expects by name, and tells what became of everything.

    ========== ===================================================================================================
    ``to``     in the folder ``dst``
    ========== ===================================================================================================
    ``hf``     ``model.safetensors``, or shards and ``model.safetensors.index.json``; config and tokenizer beside it
    ``torch``  ``pytorch_model.bin``, a state dict; config and tokenizer beside it. With ``select="*"`` ``checkpoint.pt``,
               the state as it nests
    ``keras``  ``model.keras`` where the model's config is known, or ``model.weights.h5``
    ``tf``     ``ckpt-<step>.index`` and its data, and the file ``checkpoint``, which leads to the latest
    ========== ===================================================================================================

    Args:
        src: a run (its step ``step``, by default the newest good one), whatever `open_checkpoint` opens, or one that is open.
        dst: a folder; or a single file, by a name that ends in ``.safetensors``, ``.pt``, ``.pth``, ``.keras``, ``.weights.h5``
            or, for a prefix of TensorFlow's, in ``.ckpt``. It then gets no config beside it.
        select: globs on the names in the state, or names of groups; only these are exported. Without it TensorFlow gets all, and
            the others the part that is plainly the model (``model``, ``params`` and the like), without its optimizer.
        strip: leave out the groups that all globs begin with: ``model/*`` gives ``w`` and not ``model/w``.
        rename: rules as in `convert`, on names after that; ``cast``: new dtypes, by globs on the newest names.
        max_shard_size: most tensor bytes in one file, as a number or as ``"5GB"``, which it is by default in a folder for
            ``hf`` and ``torch``.
        overwrite: whether files of these names may be replaced.
        naming: how the run ``src`` names its steps.
        src_options: storage options of ``src``; ``dst_options``: of ``dst``.
        budget, progress: as in `convert`.

    What is written is compared with the checksums of ``src`` before it appears, and appears whole, as with `convert`. Tied
    tensors are told as the tool tells them. Several steps exported ``to="tf"`` into one folder are all in its ``checkpoint``, in
    order of their numbers; its ``latest`` is the last. Exporting to one such folder is for one process at a time.

    Raises:
        StepNotFoundError: the run has no such step.
        FileExistsError: there are files of these names and ``overwrite`` is not set.
        ValueError: it is not plain what the model is in the state, a glob or rule that matches nothing, ``dst`` is a run of
            ckptmgr's, two tensors that would get one name, nothing that says how Keras saves the model.
        UnsupportedTensorError, CorruptCheckpointError, OSError: as `convert` does.
    """
    if to not in TOOLS:
        raise ValueError(f"to={to!r} is none of the tools that are known: {shown(TOOLS)}")
    with ExitStack() as stack:
        opened = stack.enter_context(_opened(src, step, naming, src_options)) if not isinstance(src, Checkpoint) else src
        if opened is src and step is not None:
            raise ValueError("an open checkpoint is one step already: leave out step=")
        stack.enter_context(opened.explained())
        taking = _Export(opened, to, os.fspath(dst), select, strip)
        rules = rules_of(rename, None, cast)
        bags, unread = carrying.baggage(opened)
        part = taking.part()
        bags, unread = taking.with_neighbours(bags, unread)
        made = taking.form(bags, max_shard_size)
        backend, folder, stem = made.place(dst, dst_options)
        _refuse_run(folder)
        beside = {name: data for name, data in (made.beside or {}).items() if not _is_there(folder, name, data)}
        place = Place(backend, folder, stem, beside=beside)
        job = Job(opened, place, rules, lambda _, given: Taken(*taking.taken(part, given, made), unread))
        report = job.run(overwrite=overwrite, max_file_nbytes=made.max_file_nbytes, budget=budget, progress=progress)
        hints = _follow(backend, folder, stem) if isinstance(backend, RunFiles) else []
        return _told(report, bags, made, [folder.location(name) for name in hints], taking.values)


def _opened(
    src: str | os.PathLike[str] | CheckpointManager,
    step: int | None,
    naming: StepNaming,
    options: Mapping[str, Any] | None,
) -> Checkpoint:
    run = src if isinstance(src, CheckpointManager) else CheckpointManager(src, naming=naming, storage_options=options)
    if step is not None or isinstance(src, CheckpointManager):
        return run.open(step)
    try:
        return run.open()
    except (StepNotFoundError, NotADirectoryError, FileNotFoundError):
        return open_checkpoint(src, storage_options=options)


@dataclass
class _Export:
    """What of an opened checkpoint is exported to which tool."""

    opened: Checkpoint
    tool: Tool
    dst: str
    select: Sequence[str] | str | None
    strip: bool
    values: Sequence[str] = ()  # plain values of the state that have no place

    def part(self) -> tuple[Choice, Structure]:
        """The chosen part of the state, by its own names."""
        source, skeleton = self.opened.source, self.opened.skeleton
        names = [join(path) for path in Stored(source, skeleton).leaves]
        chosen = exportforms.choice(self.tool, names, self.select, strip=self.strip)
        partial.refuse(partial.asked_for(self.opened.unreadable, chosen.globs), source, self.opened.location)
        return chosen, structure(source, skeleton, (), chosen.globs)

    @property
    def step(self) -> int | None:
        """The step, if it is known."""
        info = self.opened.info
        return exportforms.step_of(self.opened.location) if info is None else info.step

    def with_neighbours(self, bags: Baggage, unread: dict[str, str]) -> tuple[Baggage, dict[str, str]]:
        """With what lies beside the weights, if another tool wrote them for whom the files are, and why some of it is left."""
        if self.tool not in exportforms.FLAT or exportforms.is_file(self.dst, self.tool):
            return bags, unread
        found, large = exportforms.neighbours(self.opened)
        return replace(bags, assets={**found, **bags.assets}), {**unread, **large}

    def form(self, bags: Baggage, shard: int | str | None) -> Form:
        """What the tool expects."""
        is_whole = self.select is not None and "*" in ([self.select] if isinstance(self.select, str) else self.select)
        is_named = exportforms.is_file(self.dst, self.tool)
        return exportforms.form(self.tool, bags, step=self.step, is_whole=is_whole, is_named=is_named, shard=shard)

    def taken(self, part: tuple[Choice, Structure], rules: Rules, form: Form) -> tuple[Stages, Baggage]:
        """The part after the rules, and what goes along in its files."""
        chosen, shape = part
        source = Staged(self.opened.source, shape.names, shape.aliases, shape.paths)
        given = ((chosen.prefix, ""), *rules.rules) if chosen.prefix else rules.rules
        stages = staged(source, shape.skeleton, given, rules.select)
        stages = replace(stages, left_out=[*shape.left_out, *stages.left_out])
        if form.is_flat or self.tool == "keras":
            self.values = [join(path) for path in stages.shape.scalars]
        if form.is_flat:
            flat = _flat(stages.shape)
            tied = flat.aliases if self.tool == "hf" else {}
            bags = replace(form.bags, metadata={**form.bags.metadata, **tied})
            return replace(stages, shape=replace(flat, aliases={}) if tied else flat), bags
        if self.tool == "keras":
            shape = replace(stages.shape, skeleton=None, scalars={})
            return _for_keras(replace(stages, shape=shape), form.bags, self.opened.location)
        if self.tool == "tf" and self.step is not None and not source.blobs:
            stages = replace(stages, shape=replace(stages.shape, scalars={COUNTER: self.step, **stages.shape.scalars}))
        return stages, form.bags


def _for_keras(stages: Stages, bags: Baggage, where: str) -> tuple[Stages, Baggage]:
    """With the places of the variables, if it is a step that ckptmgr's callbacks saved."""
    if bags.metadata:
        return kerasfiles.placed(stages, bags)
    text = f"nothing in {where!r} says how Keras saves this model: no callback of ckptmgr's saved it, and it is from no file of"
    raise ValueError(f"{text} Keras'. Put its weights into a copy of such a file with swap_weights")


def _flat(shape: Structure) -> Structure:
    """Tensors alone, by their keys with dots between, as modules name them."""
    contents = Contents((), paths=shape.paths)
    names = {name: ".".join(map(str, contents.path(name))) for name in (*shape.names, *shape.aliases)}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise ValueError(f"two tensors would get the name {shown(twice)}, with dots between its keys: say rename=")
    return replace(
        shape,
        skeleton=None,
        names={names[name]: own for name, own in shape.names.items()},
        aliases={names[alias]: names[name] for alias, name in shape.aliases.items()},
        paths={name: (name,) for name in names.values()},
        scalars={},
    )


def _refuse_run(folder: Folder) -> None:
    folders = folder.list().folders
    is_step = any(map(parse_attempt, folders)) and folder.head(MANIFEST) is not None
    if is_step or parse_attempt(folder.location().rpartition("/")[2]):
        raise ValueError(f"{folder.location()!r} is a step of ckptmgr's: export into a folder of its own")
    if any(folder.folder(name).head(MANIFEST) for name in folders):
        raise ValueError(f"{folder.location()!r} is a run of ckptmgr's: export into a folder of its own")


def _is_there(folder: Folder, name: str, data: bytes) -> bool:
    head = folder.head(name)
    return head is not None and head.nbytes == len(data) and folder.read_range(name, 0, head.nbytes) == data


def _follow(backend: Backend, folder: Folder, stem: str) -> list[str]:
    """Puts a checkpoint into the hints that the tool keeps beside it, in order of steps; the names of these files."""
    assert isinstance(backend, RunFiles)
    made: Mapping[str, bytes] = {}
    for _ in range(_ROUNDS):
        files = folder.list().files
        mains = {each: names[-1] for each, names in backend.file_sets(files).items()}
        # What is in other folders is left as it is.
        listed = [each for each in backend.run_order(folder) if each != stem]
        known = [each for each in listed if "/" in each or mains.get(each) in files]
        heads = {each: files.get(mains.get(each, "")) for each in (*known, stem)}
        made = backend.run_files([(each, _info(backend, each, heads[each])) for each in _in_order(known, stem)])
        changed = {name: data for name, data in made.items() if not _is_there(folder, name, data)}
        if not changed:
            break
        for name, data in changed.items():
            folder.write(name, data)
    return [*made]


def _in_order(known: Sequence[str], stem: str) -> list[str]:
    """The stems with one more, behind the last that is not of a later step."""
    step = exportforms.step_of(stem)
    later = [step is not None and (other := exportforms.step_of(each)) is not None and other > step for each in known]
    at = max((index + 1 for index, is_later in enumerate(later) if not is_later), default=0)
    return [*known[:at], stem, *known[at:]]


def _info(backend: Backend, stem: str, head: Head | None) -> StepInfo:
    return StepInfo(
        step=exportforms.step_of(stem) or 0,
        attempt="",
        sequence=0,
        run="",
        created=datetime.now(UTC) if head is None else datetime.fromtimestamp(head.modified, UTC),
        backend=backend.name,
        nbytes=0,
        name=stem,
        is_foreign=True,  # as the tool's own: it keeps and deletes them
    )


def _told(report: ConvertReport, bags: Baggage, form: Form, hints: Sequence[str], values: Sequence[str]) -> ConvertReport:
    """The report of a conversion, with what lies beside the files and what did not go into them."""
    own = {*carrying.listed(bags)}
    held = [each for each in report.held if each in own or each == "state tree"]
    held += [f"asset {name!r}" for name in form.beside or ()]
    lost = {**report.lost, **(form.lost or {}), **{f"value {name!r}": _ALONE for name in values}}
    return replace(report, held=tuple(held), lost=lost, files=(*report.files, *hints))
