"""A format whose checkpoints are named by a prefix, without a fixed ending: data files, and an index that is written last."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence

from ckptmgr.backend import Contents, Digests, FileLayout, Folder, Late, Layout, TensorSource
from ckptmgr_safetensors import SafetensorsBackend
from ckptmgr_safetensors.source import SafetensorsSource

INDEX = ".top"


class PrefixedBackend(SafetensorsBackend):
    """Data files ``<stem>.<number>.part``, each a safetensors file; ``<stem>.top`` lists them. Tied names are not for it."""

    name = "prefixed"
    suffix = ""

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        self.contents = contents
        files = []
        for number, parts in enumerate(contents.files):
            one = dataclasses.replace(contents, files=(parts,), metadata={} if number else contents.metadata)
            files.append(FileLayout(f"{stem}.{number}.part", super().layout(one, stem=stem, align=align).files[0].pieces))

        def build(digests: Mapping[str, Digests]) -> bytes:
            return json.dumps([name for name in digests if not name.endswith(INDEX)]).encode()

        return Layout((*files, FileLayout(stem + INDEX, (Late(None, build),))))

    def recognizes(self, path: str, head: bytes, siblings: Collection[str]) -> bool:
        if path in siblings:
            return path.endswith(INDEX)
        return path + INDEX in siblings

    def file_sets(self, names: Collection[str]) -> Mapping[str, Sequence[str]]:
        sets: dict[str, list[str]] = {name.removesuffix(INDEX): [] for name in sorted(names) if name.endswith(INDEX)}
        for name in sorted(names):
            if name.endswith(".part"):
                sets.setdefault(name.rsplit(".", 2)[0], []).append(name)
        return {stem: [*parts, stem + INDEX] for stem, parts in sets.items()}

    def open(self, folder: Folder, path: str) -> TensorSource:
        index = path.removesuffix(INDEX) + INDEX
        head = folder.head(index)
        if head is None:
            raise FileNotFoundError(f"no {index!r}")
        parts = json.loads(folder.read_range(index, 0, head.nbytes))
        sources = [super(PrefixedBackend, self).open(folder, name) for name in parts]
        places = {name: place for source in sources for name, place in source.places.items()}
        return SafetensorsSource(folder, places, metadata=sources[0].metadata)
