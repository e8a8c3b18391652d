"""Virtio devices, over memory-mapped registers or PCI (VIRTIO 1.2)."""
