"""Ethernet between machines, and to the outside. Imports no other layer."""
