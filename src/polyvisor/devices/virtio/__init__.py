"""Virtio devices (OASIS Virtual I/O Device 1.2)."""
