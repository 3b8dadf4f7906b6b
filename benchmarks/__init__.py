"""Measurements. Each prints a table and one JSON line; results stand in docs/lab-log.md."""
