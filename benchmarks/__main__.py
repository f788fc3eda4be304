"""``python -m benchmarks [NAME ...]``."""

from benchmarks.running import main

main()
