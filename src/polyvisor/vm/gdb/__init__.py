"""Debuggers: GDB's remote serial protocol, and what it asks of a machine of any kind."""
