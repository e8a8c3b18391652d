"""Media of Commodore's home computers, as values: disks, tapes, programs, cartridges, and their character set."""
