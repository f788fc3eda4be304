"""Durable save and verified restore of one state, beside the machine's limits and every peer.

Ours is a managed step: checksums, fsync and atomic commit, and a restore that verifies every byte. A peer's save is followed
by an fsync of its files and folders, inside the clock; the time without it is shown aside. All restored bytes are read
once inside the clock; the time of the call alone is shown aside.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.limits import READ, WRITE, Raw
from benchmarks.measure import Case, Facts, Way, drop, emptied, read_in, settle, timed
from benchmarks.peers import OursMapped, Own, Peer, chosen
from benchmarks.running import main
from benchmarks.states import MIB, State, blank, check, nbytes_of, read_through, transformer

OURS = "ckptmgr safetensors"


def cases(folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0) -> list[Case]:
    """Save, and restore in every way, of a transformer of ``nbytes``."""
    state = transformer(nbytes or (64 if quick else 256) * MIB)
    everybody = chosen(peers)
    table = Table(state, folder)
    return [table.kept(everybody), table.saves(everybody), *table.restores(everybody)]


class Table:
    """The cases of one state; what is restored lies in ``folder/kept``, a folder for each."""

    def __init__(self, state: State, folder: Path, *, label: str = "", slow: Mapping[str, int] | None = None) -> None:
        self.state = state
        self.nbytes = nbytes_of(state)
        self.folder = folder
        self.label = label
        self.slow = slow or {}

    def kept(self, peers: Sequence[Peer]) -> Case:
        """Saves the state by everybody, for the restores, and checks what comes back; nothing is timed."""

        def keep(peer: Peer) -> Facts:
            folder = emptied(self.kept_by(peer))
            peer.save(peer.own(self.state), folder)
            if peer.loads:
                check(self.state, peer.load(folder))
            return {"seconds": 0}

        everybody = [Raw(READ, self.state), *peers]
        return Case(f"preparing{self.label}", [self.way(peer, lambda peer=peer: keep(peer)) for peer in everybody], shown=False)

    def saves(self, peers: Sequence[Peer]) -> Case:
        """A durable save into an empty folder."""

        def save(peer: Peer) -> Facts:
            folder = self.folder / "new"
            own = peer.own(self.state)
            peer.warm(self.folder / "warm")
            emptied(folder)
            settle(2 * self.nbytes)
            facts = timed(lambda: peer.save(own, folder), then=lambda _: peer.finish(folder))
            emptied(folder)
            return facts

        ways = [self.way(peer, lambda peer=peer: save(peer)) for peer in [Raw(WRITE), *peers]]
        return Case("durable save" + self.label, ways, self.nbytes, limit=WRITE, ours=OURS, aside="without fsync")

    def restores(self, peers: Sequence[Peer]) -> list[Case]:
        """Restores of files in memory and not, into fresh arrays and given ones."""
        loading = [Raw(READ, self.state), *(peer for peer in peers if peer.loads)]
        mapped = [OursMapped()] if any(peer.name == OURS for peer in peers) else []
        filling = [Raw(READ), *(peer for peer in peers if peer.fills)]

        def case(name: str, call: Callable[[Peer], Facts], peers: Sequence[Peer], aside: str = "") -> Case:
            ways = [self.way(peer, lambda peer=peer: call(peer)) for peer in peers]
            return Case(name + self.label, ways, self.nbytes, limit=READ, ours=OURS, aside=aside)

        return [
            case("restore", self.load, [*loading, *mapped], aside="the call alone"),
            case("restore into given arrays", self.fill, filling),
            case("restore, not in memory", self.load_cold, [*loading, *mapped], aside="the call alone"),
        ]

    def load(self, peer: Peer) -> Facts:
        """Fresh arrays, from files that the system holds in memory."""
        folder = self.kept_by(peer)
        peer.warm(self.folder / "warm")
        read_in(folder)
        settle(2 * self.nbytes)
        return timed(lambda: peer.load(folder), then=read_through)

    def load_cold(self, peer: Peer) -> Facts:
        """Fresh arrays, from files that the system has forgotten."""
        folder = self.kept_by(peer)
        peer.warm(self.folder / "warm")
        settle(2 * self.nbytes)
        resident = drop(folder)
        return timed(lambda: peer.load(folder), then=read_through) | {"resident": resident}

    def fill(self, peer: Peer) -> Facts:
        """Arrays that the caller has, whose memory was touched, from files that the system holds in memory."""
        folder = self.kept_by(peer)
        own: Own = peer.own(blank(self.state))
        peer.warm(self.folder / "warm")
        read_in(folder)
        settle(self.nbytes)
        return timed(lambda: peer.fill(own, folder))

    def kept_by(self, peer: Peer) -> Path:
        """Where the peer's files are."""
        return self.folder / "kept" / peer.name.removesuffix(", mmap").replace(" ", "-")

    def way(self, peer: Peer, task: Callable[[], Any]) -> Way:
        """That task, by the peer."""
        return Way(peer.name, task, peer.ready, self.slow.get(peer.name, 1_000))


if __name__ == "__main__":
    main(["save_restore"])
