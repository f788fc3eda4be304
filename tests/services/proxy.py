"""The fault-injecting proxy in front of another server, and how tests steer it."""

import json
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.process import Service, free_ports


class Proxy(Service):
    """`services.faultproxy` in front of ``upstream``, a loopback URL."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream

    def command(self, folder: Path) -> Sequence[str]:
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        return [sys.executable, "-m", "services.faultproxy", "--upstream", self.upstream, "--port", str(port)]

    def is_ready(self) -> bool:
        self.requests()
        return True

    def rules(self, *rules: Mapping[str, Any]) -> None:
        """From now on these rules hold; the log is empty."""
        self._ask("rules", list(rules))

    def set(self, *, latency: float = 0.0, bandwidth: float | None = None) -> None:
        """Seconds before each request is passed on, and bytes a second for all bodies together."""
        self._ask("set", {"latency": latency, "bandwidth": bandwidth})

    def requests(self) -> list[dict[str, Any]]:
        """Every request since the last `rules`: method, target, range, status, bytes of its body, the fault it met."""
        return self._ask("log")

    def _ask(self, what: str, data: object = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(f"{self.endpoint}/__fault__/{what}", body, timeout=10) as answer:
            return json.loads(answer.read())
