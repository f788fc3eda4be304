"""Which fault a request meets. Rules are JSON objects:

    {"method": regex, "path": regex on path?query, "header": {name: regex},      all optional
     "nth": k or [from, to] among the requests that match (from 1), "times": most hits, "prob": 0..1, "seed": n,
     "do": ACTION, and what the action takes}

The first rule that fires wins. Actions, with what the server and the client see:

- ``status``      the answer is ``code`` (503) with ``body`` and ``headers``; the request never reaches the server
- ``reset``       the connection is reset; the request never reaches the server
- ``reset_req``   ``bytes`` of the request's body are passed on, then both connections are reset
- ``lose``        the server does it all, then the client's connection is reset: nobody knows
- ``late``        like ``status``, but the server did execute the request
- ``reset_resp``  ``bytes`` of the response's body are passed on, then the connection is reset
- ``truncate``    the same, with a clean end
- ``corrupt``     the bit at ``bytes`` of the response's body is flipped
- ``hang``        nothing is answered for ``seconds`` (60), then the connection is reset
- ``delay``       it waits ``seconds`` before the request (``delay_resp``: the response) is passed on
- ``spoil``       the bit at ``bytes`` (the last) of the request's body is flipped on its way to the server
- ``strip``       the headers named in ``names`` are taken out of the request, which moto takes all the same
- ``dup``         the server gets the request twice, the client the second answer
- ``stale``       the answer is the last one to the same GET or HEAD
- ``kill``        signal ``sig`` (9) goes to ``pid`` before the server sees the request, or (``when``: ``after``) once it is done
"""

import os
import random
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


class Rule:
    def __init__(self, **given: Any) -> None:
        self.given = given
        self.action: str = given["do"]
        self._random = random.Random(given.get("seed", 0))
        self._seen = self._hits = 0

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def get(self, name: str, default: Any) -> Any:
        return self.given.get(name, default)

    def fires(self, method: str, target: str, headers: Mapping[str, str]) -> bool:
        if not self._matches(method, target, headers):
            return False
        self._seen += 1
        nth = self.get("nth", [1, self._seen])
        first, last = nth if isinstance(nth, list) else (nth, nth)
        if not first <= self._seen <= last or self._hits >= self.get("times", self._hits + 1):
            return False
        if self._random.random() >= self.get("prob", 1):
            return False
        self._hits += 1
        return True

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self["pid"], self.get("sig", signal.SIGKILL))

    def _matches(self, method: str, target: str, headers: Mapping[str, str]) -> bool:
        if not re.fullmatch(self.get("method", method), method) or not re.search(self.get("path", ""), target):
            return False
        return all(re.search(pattern, headers.get(name.lower(), "")) for name, pattern in self.get("header", {}).items())
