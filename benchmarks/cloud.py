"""Bytes to and from an object store: what the client costs by itself, and how much of a slow link it uses.

The null server swallows what it is sent and serves zeros, on the same machine. Ours includes the crc32c of every tensor and
file and, on the way there, the CRC64 by which the server can tell damaged bytes. obstore is the client below ours, called
directly in the ways in which it is fastest, without any checksum or signature of the body, and with the same checksums as
ours: the difference between these two is what they cost on two cores that the server shares. All have sent a file of 17 MiB
before.
The link of 50 MB/s and 30 ms a request is a proxy in front of a server in memory; there ours is a save and a restore of a
managed step.
"""

import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Case, Facts, Way, timed
from benchmarks.running import main
from benchmarks.states import MIB
from ckptmgr import CheckpointManager, transfer
from ckptmgr.checksum import crc32c
from ckptmgr.layout import Extent, FileLayout, Layout, Part
from ckptmgr.memory import MemorySource
from ckptmgr.spec import TensorSpec
from ckptmgr.storage import Folder, ObjectStore

OURS = "ckptmgr"
BANDWIDTH, LATENCY_S = 50e6, 0.03
TENSORS = 16
ALONE = "the bytes alone"
WARM = 1, 17 * MIB  # what is sent before: by one request, and in parts
KEYS = {"key": "any", "secret": "any", "region": "us-east-1"}


def cases(folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0) -> list[Case]:
    """Upload and download beside obstore and s3fs, and a save and a restore over a slow link."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    services = importlib.import_module("services")
    null = Null(services.Sink().__enter__().endpoint, nbytes or (64 if quick else 256) * MIB)  # it ends with this process
    link = Link(services, nbytes or (16 if quick else 256) * MIB)
    return [*null.cases(peers), *link.cases()]


class Arrays(MemorySource):
    """Tensors of one file of zeros under a key, as they are in memory and as they lie there."""

    def __init__(self, folder: Folder, nbytes: int) -> None:
        self.arrays = {f"t{number}": np.zeros(nbytes // TENSORS, np.uint8) for number in range(TENSORS)}
        for array in self.arrays.values():
            array.fill(0)  # memory of its own
        super().__init__(self.arrays, {name: TensorSpec("uint8", array.shape) for name, array in self.arrays.items()})
        self._folder, self._crc32c = folder, crc32c(self.arrays["t0"])

    def extents(self, name: str) -> Sequence[Extent]:
        """Where a tensor lies."""
        offset = int(name[1:]) * self.arrays[name].nbytes
        return (Extent(self._folder, "key", offset, None, self._crc32c),)

    def layout(self) -> Layout:
        """The file."""
        return Layout((FileLayout("key", tuple(Part(name, self.specs[name]) for name in self.arrays)),), frozenset({"crc32c"}))


class Null:
    """Uploads from arrays and downloads into arrays, with a server that does nothing."""

    def __init__(self, endpoint: str, nbytes: int) -> None:
        self.endpoint, self.nbytes = endpoint, nbytes // TENSORS * TENSORS

    def cases(self, peers: Sequence[str] | None) -> list[Case]:
        """Both directions."""
        up = {
            "obstore, parts of 32 MiB": functools.partial(self.obstore_upload, 32, 8),
            "obstore, parts of 128 MiB": functools.partial(self.obstore_upload, 128, 2),
            "obstore, parts of 32 MiB with CRC64": functools.partial(self.obstore_upload, 32, 8, checksum_algorithm="CRC64NVME"),
            "obstore, parts of 8 MiB with CRC64": functools.partial(self.obstore_upload, 8, 8, checksum_algorithm="CRC64NVME"),
            "obstore, 8 parts with CRC64 and crc32c": self.obstore_summed_upload,
            "s3fs": self.s3fs_upload,
        }
        down = {
            "obstore, 8 streams into arrays": functools.partial(self.obstore_streams, 8, 8),
            "obstore, 4 streams into arrays": functools.partial(self.obstore_streams, 4, 4),
            "obstore, 8 streams with crc32c": functools.partial(self.obstore_streams, 4, 8, is_summed=True),
            "obstore, ranges in its memory": self.obstore_ranges,
            "s3fs": self.s3fs_download,
        }
        return [
            self.case("upload to a null server", self.upload, up, peers),
            self.case("download from a null server", self.download, down, peers),
        ]

    def case(
        self, name: str, ours: Callable[[], Facts], theirs: dict[str, Callable[[], Facts]], peers: Sequence[str] | None
    ) -> Case:
        """Ours beside those of theirs that are chosen."""
        ready = {"obstore": ready_obstore, "s3fs": ready_s3fs}
        chosen = {who: task for who, task in theirs.items() if peers is None or who.partition(",")[0] in peers}
        others = [Way(who, task, ready[who.partition(",")[0]]) for who, task in chosen.items()]
        return Case(name, [Way(OURS, ours, ready_obstore), *others], self.nbytes, ours=OURS)

    def upload(self) -> Facts:
        """By our engine."""
        folder, source = self.ours()
        return timed(lambda: transfer.write(folder, source.layout(), source))

    def download(self) -> Facts:
        """By our engine, verified."""
        folder, source = self.ours()
        transfer.write(folder, source.layout(), source)
        return timed(lambda: transfer.read(source, [transfer.Want(name, None, out) for name, out in source.arrays.items()]))

    def ours(self) -> tuple[Folder, Arrays]:
        """A folder whose clients have sent a file in one request, and one in parts."""
        folder = Folder(ObjectStore("s3://bucket/run", endpoint_url=self.endpoint, **KEYS))
        for nbytes in WARM:
            folder.put("warm", [[np.zeros(nbytes, np.uint8)]], nbytes)
        return folder, Arrays(folder, self.nbytes)

    def obstore_upload(self, part: int, count: int, **config: str) -> Facts:
        """One buffer, in that many parts of so many MiB at once."""
        obstore, store, data = self.obstore(**config)
        return timed(lambda: obstore.put(store, "key", data.data, chunk_size=part * MIB, max_concurrency=count))

    def obstore_summed_upload(self) -> Facts:
        """Views of a buffer, each summed right before it is sent."""
        obstore, store, data = self.obstore(checksum_algorithm="CRC64NVME")

        def views() -> Iterator[memoryview]:
            value = 0
            for at in range(0, self.nbytes, 8 * MIB):
                view = data.data[at : at + 8 * MIB]
                value = crc32c(view, value)
                yield view

        return timed(lambda: obstore.put(store, "key", views(), chunk_size=8 * MIB, max_concurrency=8))

    def obstore_streams(self, part: int, count: int, *, is_summed: bool = False) -> Facts:
        """Ranges of so many MiB in that many threads, chunk by chunk into a given array; summed right after that."""
        obstore, store, data = self.obstore()
        obstore.put(store, "key", data.data)

        def fill(start: int) -> None:
            at, end = start, min(start + part * MIB, self.nbytes)
            for chunk in obstore.get(store, "key", options={"range": (start, end)}).stream(1 << 16):
                data[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
                at += len(chunk)
            if is_summed:
                crc32c(data[start:end])

        def run() -> None:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(fill, range(0, self.nbytes, part * MIB)))

        return timed(run)

    def obstore_ranges(self) -> Facts:
        """Ranges of 16 MiB in 8 threads, which stay in its own memory."""
        obstore, store, data = self.obstore()
        obstore.put(store, "key", data.data)

        def run() -> list[Any]:
            with ThreadPoolExecutor(8) as pool:
                starts = range(0, self.nbytes, 16 * MIB)
                ends = [min(start + 16 * MIB, self.nbytes) for start in starts]
                return list(pool.map(lambda start, end: obstore.get_range(store, "key", start=start, end=end), starts, ends))

        return timed(run)

    def obstore(self, **config: str) -> tuple[Any, Any, np.ndarray]:
        """The package, a store that has sent the same, and an array."""
        obstore = importlib.import_module("obstore")
        keys = {"access_key_id": "any", "secret_access_key": "any", "region": "us-east-1", "unsigned_payload": True}
        made = importlib.import_module("obstore.store").S3Store
        store = made("bucket", config={**keys, **config, "endpoint": self.endpoint}, client_options={"allow_http": True})
        for nbytes in WARM:
            obstore.put(store, "warm", np.zeros(nbytes, np.uint8).data, chunk_size=16 * MIB)
        data = np.empty(self.nbytes, np.uint8)
        data.fill(0)
        return obstore, store, data

    def s3fs_upload(self) -> Facts:
        """Bytes, as it takes no arrays."""
        fs, data = self.s3fs()
        return timed(lambda: fs.pipe_file("bucket/key", bytes(data.data)))

    def s3fs_download(self) -> Facts:
        """The whole, which stays in its own memory."""
        fs, data = self.s3fs()
        fs.pipe_file("bucket/key", bytes(data.data))
        return timed(lambda: fs.cat_file("bucket/key"))

    def s3fs(self) -> tuple[Any, np.ndarray]:
        """A file system whose connection is open, and an array."""
        given = {"key": "any", "secret": "any", "endpoint_url": self.endpoint, "client_kwargs": {"region_name": "us-east-1"}}
        fs = importlib.import_module("s3fs").S3FileSystem(**given)
        fs.pipe_file("bucket/warm", b"x")
        data = np.empty(self.nbytes, np.uint8)
        data.fill(0)
        return fs, data


class Link:
    """A save and a restore of a managed step through a proxy that lets so many bytes a second pass."""

    def __init__(self, services: Any, nbytes: int) -> None:
        server = services.Sparse().__enter__()
        proxy = services.Proxy(server.endpoint).__enter__()
        proxy.set(latency=LATENCY_S, bandwidth=BANDWIDTH)
        self.nbytes = nbytes
        self._straight, self._slow = ({**KEYS, "endpoint_url": where.endpoint} for where in (server, proxy))

    def cases(self) -> list[Case]:
        """Both directions."""
        limit = Way(ALONE, self.alone, rounds=2)
        return [
            Case(f"{what} over a link of 50 MB/s", [limit, Way(OURS, task, ready_obstore, rounds=2)], self.nbytes, ALONE, OURS)
            for what, task in (("save", self.save), ("restore", self.restore))
        ]

    def alone(self) -> Facts:
        """What the link takes for the bytes, without any request."""
        return {"seconds": self.nbytes / BANDWIDTH, "extra_nbytes": 0}

    def save(self) -> Facts:
        """A managed step."""
        manager = CheckpointManager(f"s3://test-bucket/save-{time.time_ns()}", storage_options=self._slow)
        state = self.state()
        return timed(lambda: manager.save(1, state))

    def restore(self) -> Facts:
        """Into given arrays, verified."""
        url, state = f"s3://test-bucket/restore-{time.time_ns()}", self.state()
        CheckpointManager(url, storage_options=self._straight).save(1, state)
        manager = CheckpointManager(url, storage_options=self._slow)
        return timed(lambda: manager.restore(into=state))

    def state(self) -> dict[str, np.ndarray]:
        """Tensors of zeros in memory of their own."""
        state = {f"t{number}": np.empty(self.nbytes // TENSORS, np.uint8) for number in range(TENSORS)}
        for array in state.values():
            array.fill(0)
        return state


def ready_obstore() -> None:
    """Imports it."""
    importlib.import_module("obstore.store")
    importlib.import_module("obstore.exceptions")


def ready_s3fs() -> None:
    """Imports it."""
    importlib.import_module("s3fs")


if __name__ == "__main__":
    main(["cloud"])
