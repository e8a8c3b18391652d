"""The chips of the Commodore 64, described beside its CPU."""
