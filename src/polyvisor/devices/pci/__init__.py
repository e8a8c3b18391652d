"""PCI: functions with their configuration space, and a host bridge (PCI Local Bus 3.0, PCI Express Base)."""
