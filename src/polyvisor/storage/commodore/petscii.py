"""PETSCII, Commodore's character set, its screen codes, and Unicode.

There are two sets of glyphs: upper case with graphics (``lower=False``, what the machine starts with), and lower
with upper case.  Sources: Commodore 64 Programmer's Reference Guide, appendices B and C; Unicode 13, block "Symbols
for Legacy Computing", for what has no older equivalent.
"""

from __future__ import annotations

# ruff: noqa: RUF001
_UPPER = (
    # $20
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[£]↑←"
    # $60 = $C0
    "─♠\U0001fb72\U0001fb78\U0001fb77\U0001fb76\U0001fb7a\U0001fb71\U0001fb74╮╰╯\U0001fb7c╲╱\U0001fb7d"
    "\U0001fb7e●\U0001fb7b♥\U0001fb70╭╳○♣\U0001fb75♦┼\U0001fb8c│π◥"
)
_GRAPHICS = (
    # $A0 = $E0
    "\xa0▌▄▔▁▏▒▕\U0001fb8f◤\U0001fb87├▗└┐▂┌┴┬┤▎▍\U0001fb88\U0001fb82\U0001fb83▃\U0001fb7f▖▝┘▘▚"
)
_LOWER_CHANGES = {
    **{0x41 + i: chr(ord("a") + i) for i in range(26)},
    **{0x61 + i: chr(ord("A") + i) for i in range(26)},
    0x7E: "\U0001fb96", 0x7F: "\U0001fb98", 0xA9: "\U0001fb99", 0xBA: "✓",
}  # fmt: skip
_CONTROLS = {0x0D: "\n", 0x8D: "\n"}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _table(lower: bool) -> list[str]:
    table = [_CONTROLS.get(code, REPLACEMENT) for code in range(256)]
    table[0x20:0x80] = _UPPER
    table[0xA0:0xC0] = _GRAPHICS
    if lower:
        for code, character in _LOWER_CHANGES.items():
            table[code] = character
    table[0xC0:0xE0] = table[0x60:0x80]
    table[0xE0:0xFF] = table[0xA0:0xBF]
    table[0xFF] = table[0x7E]
    return table


_TO_UNICODE = {lower: _table(lower) for lower in (False, True)}
# Where several codes have one glyph, the one that the keyboard gives: $C0 and above before $60, $A0 before $E0.
_FROM_UNICODE = {
    lower: {
        table[code]: code
        for code in (*range(0x60, 0x80), *range(0xFF, 0x9F, -1), *range(0xDF, 0xBF, -1), *range(0x5F, 0x1F, -1), 0x0D)
        if table[code] != REPLACEMENT
    }
    for lower, table in _TO_UNICODE.items()
}
_SAME = {"_": "←", "^": "↑", "|": "│", "~": "π"}


def to_unicode(data: bytes, lower: bool = False) -> str:
    """The text of PETSCII ``data``. Control codes are U+FFFD, but for returns, which are new lines."""
    table = _TO_UNICODE[lower]
    return "".join(table[code] for code in data)


def from_unicode(text: str, lower: bool = False) -> bytes:
    """The PETSCII of ``text``. In the set without lower case, small letters are taken for capitals.

    Of ASCII, ``_ ^ | ~`` become what is in their place or looks like them. Raises ValueError for what is not there.
    """
    table = _FROM_UNICODE[lower]
    out = bytearray()
    for character in text:
        code = table.get(character)
        if code is None and not lower:
            code = table.get(character.upper())
        if code is None and character in _SAME:
            code = table.get(_SAME[character])
        if code is None:
            raise ValueError(f"{character!r} is not in PETSCII's set with {'lower' if lower else 'upper'} case")
        out.append(code)
    return bytes(out)


def screen_code(code: int) -> int:
    """The screen code, 0 to 127, of a PETSCII code that is printable."""
    if code == 0xFF:
        return 0x5E
    return code & 0x1F | (0, 0x20, 0, 0x40, 0, 0x60, 0x40, 0x60)[code >> 5]


def from_screen_code(code: int) -> int:
    """The PETSCII code of what a screen code shows, without regard to bit 7, which reverses it."""
    return code & 0x1F | (0x40, 0x20, 0xC0, 0xA0)[code >> 5 & 3]


def screen_text(codes: bytes, lower: bool = False) -> str:
    """The text that screen codes show, reversed or not."""
    return to_unicode(bytes(from_screen_code(code) for code in codes), lower).replace("\xa0", " ")
