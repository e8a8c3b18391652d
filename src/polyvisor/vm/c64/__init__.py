"""The Commodore 64 as an object that people use."""
