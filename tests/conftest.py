"""Being here puts this directory on the import path, so that tests can import from ``support``."""
