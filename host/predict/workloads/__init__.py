"""Workloads: what a training step asks of a computer."""
