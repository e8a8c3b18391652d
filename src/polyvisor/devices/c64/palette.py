"""The sixteen colours of the VIC-II.

The chip makes luminance and phase, not red, green and blue, and what is seen depends on the television. These are the
values that P. Timmermann calculated from the levels of a real chip and what a PAL decoder makes of them ("Colodore",
www.colodore.com, 2017).
"""

NAMES = (
    "black", "white", "red", "cyan", "purple", "green", "blue", "yellow",
    "orange", "brown", "light red", "dark grey", "grey", "light green", "light blue", "light grey",
)  # fmt: skip

COLOURS = (
    0x000000, 0xFFFFFF, 0x813338, 0x75CEC8, 0x8E3C97, 0x56AC4D, 0x2E2C9B, 0xEDF171,
    0x8E5029, 0x553800, 0xC46C71, 0x4A4A4A, 0x7B7B7B, 0xA9FF9F, 0x706DEB, 0xB2B2B2,
)  # fmt: skip
"""Each as 0xRRGGBB, by its number."""
