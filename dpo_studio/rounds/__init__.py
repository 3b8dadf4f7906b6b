"""Snapshot, split, launch, gate, registry and schedule of DPO rounds. No torch."""
