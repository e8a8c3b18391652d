"""Machines in one virtual time: ``ensemble`` runs their conductors, ``group`` is what people use."""
