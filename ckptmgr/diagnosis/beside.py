"""What lies in a run and is no committed step: steps of other tools, remains of an adoption, hints, links, other files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ckptmgr import foreign, linked
from ckptmgr.adopting import ADOPTED
from ckptmgr.diagnosis.cures import Cures, shell
from ckptmgr.diagnosis.findings import Finding
from ckptmgr.diagnosis.looking import Look
from ckptmgr.diagnosis.words import counted, sized, steps
from ckptmgr.errors import shown
from ckptmgr.finding import Known, Run
from ckptmgr.foreign import Foreign
from ckptmgr.hints import Hints
from ckptmgr.manifest import MANIFEST, TREE
from ckptmgr.naming import parse_foreign
from ckptmgr.storage.weak import is_probe


def foreign_steps(look: Look) -> tuple[list[Foreign], OSError | None]:
    """The steps of other tools, oldest first, as `Run.steps` tells them; or none, and the error that this gives."""
    folders, taken = _open_folders(look), _taken(look)
    oldest = min([0, *(step.manifest.sequence for step in look.committed[:1] if step.manifest)])
    try:
        return foreign.find(look.root, look.naming, look.files, folders=folders, taken=taken, below=oldest), None
    except OSError as error:
        return [], error


def links(look: Look) -> list[linked.Link]:
    """The links where steps would be, which `Run.steps` refuses."""
    names = linked.names(look.root)
    return linked.hiding(look.root, look.naming, names, look.files, _open_folders(look), taken=_taken(look))


def _open_folders(look: Look) -> list[str]:
    """The folders that have no record."""
    held = {name for name, step in look.steps.items() if step.listed.record}
    return [*look.folders, *(name for name, step in look.steps.items() if name not in held and not step.listed.closed)]


def _taken(look: Look) -> set[int]:
    return {step.step for step in look.steps.values() if step.manifest or step.trouble}


@dataclass(frozen=True)
class Beside:
    """Tells of it, in a run as it was seen; ``others`` are the steps of other tools, ``links`` the links that are refused."""

    look: Look
    cures: Cures
    others: Sequence[Foreign]
    links: Sequence[linked.Link] = ()

    def findings(self, *, is_run: bool) -> Iterator[Finding]:
        """One for each sort. Of a folder that is no run it is no news that others have written into it."""
        yield from self._foreign()
        yield from self._adopted()
        yield from self._hints()
        yield from self._links()
        yield from self._unknown() if is_run else ()

    def _foreign(self) -> Iterator[Finding]:
        flat = [each.info.step for each in self.others if not each.inside]
        inside = [each.info.step for each in self.others if each.inside]
        means = (
            "They are listed and restored, and are older than all that was saved here. Retention never touches them: their "
            "space stays in use."
        )
        if flat:
            found = f"{steps(flat)}: written by another tool, beside the steps of this run"
            commands = (self.cures.command("adopt"),)
            heals = "Nothing needs to be done. To make them steps of this run, adopt them."
            yield Finding("note", "foreign-step", found, means, heals, commands, step=flat[-1])
        if inside:
            found = f"{steps(inside)}: written by another tool, in a folder of its own"
            heals = "Nothing needs to be done. To have them as steps of ckptmgr, bring them into a new run (`ckptmgr migrate`)."
            yield Finding("note", "foreign-step", found, means, heals, step=inside[-1])

    def _adopted(self) -> Iterator[Finding]:
        for step in self.look.committed:
            manifest = step.manifest
            if manifest is None or ADOPTED not in manifest.extra:
                continue
            left = [entry for entry in manifest.files if entry.name in self.look.files and entry.name != TREE]
            same = [entry for entry in left if self.look.files[entry.name].nbytes == entry.nbytes]
            if same:
                found = (
                    f"step {step.step}: {counted(len(same), 'file')} that it was adopted from ({same[0].name!r}) are still there"
                )
                means = "Nothing is lost: the adoption was interrupted after its commit, and the bytes are there twice."
                heals = "To adopt again compares them, and removes what is the same."
                commands = (self.cures.command("adopt", "--step", step.step),)
                yield Finding("warning", "half-adopted", found, means, heals, commands, step=step.step, file=same[0].name)

    def _hints(self) -> Iterator[Finding]:
        for name, data in self._hinted.items():
            read = self.look.root.read(name) if name in self.look.files else None
            if read is not None and read[0] == data:
                continue
            found = f"{name!r}, which tells other tools of the steps, is not as the steps are"
            means = (
                "Nothing is lost, and ckptmgr never reads it. Other tools find another step than the newest, or one that is gone."
            )
            yield Finding("warning", "stale-hint", found, means, "sweep writes it anew.", (self.cures.sweep(),), file=name)

    def _links(self) -> Iterator[Finding]:
        """Links where steps or records should be: they are as good as absent."""
        root, where = self.look.root, self.look.root.location
        empty = [step.name for step in self.look.steps.values() if step.listed.record is None]
        own = linked.links(root, self.look.naming, linked.names(root), empty)
        for name, step in dict.fromkeys([*own, *self.links]):
            found = f"{name!r} is a symbolic link"
            means = "Links in a run are never followed: what is behind it is not restored, counted or deleted."
            heals = "Put a copy of what it leads to in its place."
            target = os.path.realpath(where(name))
            # Whoever made the link may have meant anything by it: only what looks like a step, and only a copy of that.
            file = target if name.endswith(f"/{MANIFEST}") else os.path.join(target, MANIFEST)
            is_ours = (name, step) in own and os.path.isfile(file)
            commands = (*shell("rm", where(name)), *shell("cp", "-a", target, where(name))) if is_ours else ()
            if is_ours and os.path.dirname(target) == os.path.realpath(where()):
                heals, commands = "It leads to another step of this run: take it away.", shell("rm", where(name))
            yield Finding("problem", "link", found, means, heals, commands, step=step, file=name)

    def _unknown(self) -> Iterator[Finding]:
        for step in self.look.steps.values():
            foreign = any(each.inside == step.name for each in self.others)
            if step.listed.others and not foreign:
                found = (
                    f"step {step.step}: {counted(len(step.listed.others), 'thing')} in its folder that ckptmgr did not write: "
                )
                found += shown(sorted(step.listed.others), 3)
                means = "ckptmgr does not read, count or delete them."
                yield Finding("note", "unknown-file", found, means, step=step.step, file=step.name)
        known = {name for each in self.others for name in (*each.files, each.inside)} | self._known_files
        files = [name for name in self.look.files if name not in known and not is_probe(name)]
        folders = [name for name in self.look.folders if name not in known and parse_foreign(name) is None]
        if files or folders:
            nbytes = sum(self.look.files[name].nbytes for name in files)
            what = [f"{counted(len(files), 'file')} ({sized(nbytes)})"] * bool(files)
            what += [counted(len(folders), "folder")] * bool(folders)
            found = f"{' and '.join(what)} that ckptmgr did not write: {shown([*sorted(files), *sorted(folders)], 3)}"
            means = "ckptmgr does not read, count or delete them."
            yield Finding("note", "unknown-file", found, means)

    @cached_property
    def _hinted(self) -> dict[str, bytes]:
        known: list[Known] = [*self.others, *(step.committed(self.look.root) for step in self.look.committed)]
        return Hints(Run(self.look.root, self.look.naming)).contents(known)

    @property
    def _known_files(self) -> set[str]:
        """Hints, and what is left of an adoption."""
        adopted = [step.manifest for step in self.look.committed if step.manifest and ADOPTED in step.manifest.extra]
        return {*self._hinted, *(entry.name for manifest in adopted for entry in manifest.files)}
