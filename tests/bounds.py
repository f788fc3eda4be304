"""What hostile input may cost: time of this process, and memory."""

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cheap(seconds: float = 5.0, nbytes: int = 64 << 20) -> Iterator[None]:
    """What happens inside is quick and small; tracing makes it several times slower than it is."""
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        assert time.process_time() - started < seconds
        assert tracemalloc.get_traced_memory()[1] < nbytes
    finally:
        tracemalloc.stop()
