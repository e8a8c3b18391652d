"""Where things are in the Commodore 64's physical memory, which chips reach without the CPU's banking.

These are the machine's own choices: 64 KiB of RAM, then all that the PLA can put in front of it.
"""

RAM = 0x00000
COLOUR_RAM = 0x10000  # 1 KiB, of which the low nibbles exist
BASIC_ROM = 0x12000
CHARACTER_ROM = 0x14000
KERNAL_ROM = 0x16000
CARTRIDGE_HIGH = 0x1A000  # what the VIC-II sees of a cartridge: the upper ROM of its first bank
CARTRIDGE_RAM = 0x1C000  # 256 bytes
FRAME_BUFFER = 0x20000  # a byte a pixel: the number of its colour
FRAME_LINES = 312
FRAME_STRIDE = 512
SOUND = 0x48000
CARTRIDGE = 0x100000  # the ROMs of a cartridge: for each bank 8 KiB that are seen at $8000, and 8 KiB at $A000 or $E000
CARTRIDGE_BANK = 0x4000
