"""Benchmarks: shard I/O throughput beside the plain library calls. ``python -m benchmarks.save_restore --quick``."""
