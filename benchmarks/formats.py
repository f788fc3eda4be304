"""One format written and read by us, as a managed step and as bare files, beside the library that it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ckptmgr
from benchmarks.measure import Case, Facts, emptied, read_in, settle, timed
from benchmarks.peers import Ours, Peer
from benchmarks.save_restore import Table
from benchmarks.states import State, read_through


class Format:
    """The cases of one state in one format. The first of ``ours`` is what the others are compared with."""

    def __init__(
        self,
        state: State,
        folder: Path,
        ours: Sequence[Ours],
        theirs: Sequence[Peer],
        *,
        label: str = "",
        slow: Mapping[str, int] | None = None,
    ) -> None:
        self.table = Table(state, folder, label=label, slow=slow)
        self.ours = ours
        self.theirs = theirs
        self.everybody: list[Peer] = [*ours, *theirs]

    def cases(self) -> list[Case]:
        """Save, replace, restore."""
        table, name = self.table, self.ours[0].name
        restored = table.restores(self.everybody)[0]
        foreign = [table.way(peer, lambda peer=peer: self.load_foreign(peer)) for peer in self.theirs if peer.loads]
        foreign = [replace(way, who=f"ckptmgr, the file of {way.who}") for way in foreign]
        given = [table.way(peer, lambda peer=peer: table.fill(peer)) for peer in self.everybody if not peer.loads]
        replaced = [table.way(peer, lambda peer=peer: self.replace(peer)) for peer in self.everybody]
        return [
            table.kept(self.everybody),
            replace(table.saves(self.everybody), ours=name),
            Case("replace" + table.label, replaced, table.nbytes, ours=name),
            replace(restored, ways=[*restored.ways, *foreign, *given], ours=name),
        ]

    def replace(self, peer: Peer) -> Facts:
        """A durable save over an older one, which then has to be deleted."""
        folder = self.table.folder / "old"
        own = peer.own(self.table.state)
        peer.warm(self.table.folder / "warm")
        save(peer, own, emptied(folder))
        settle(2 * self.table.nbytes)
        facts = timed(lambda: save(peer, own, folder))
        emptied(folder)
        return facts

    def load_foreign(self, peer: Peer) -> Facts:
        """Our restore of the library's own file."""
        folder = self.table.kept_by(peer)
        path = next(folder / name for name in ("model.h5", "model") if (folder / name).exists() or name == "model")
        self.ours[0].warm(self.table.folder / "warm")
        read_in(folder)
        settle(2 * self.table.nbytes)
        return timed(lambda: ckptmgr.load(path), then=read_through)


def save(peer: Peer, own: object, folder: Path) -> None:
    """A save, durable."""
    if type(peer) is Ours:
        ckptmgr.CheckpointManager(folder, backend=peer.backend).save(0, own, overwrite=True)
    else:
        peer.save(own, folder)
        peer.finish(folder)
