"""polyvisor: virtual machines described once, in Python."""

__version__ = "0.1.0"
