"""Recordings of machines in virtual time: written as they run, replayed bit for bit."""
