"""Virtio devices over memory-mapped registers (VIRTIO 1.2)."""
