"""Checkpoints that are whole or absent, in standard file formats, for any training framework."""
