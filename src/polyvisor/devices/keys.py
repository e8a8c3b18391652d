"""The keys of a keyboard: names, Linux's numbers for them, and what each types in the US layout.

The numbers are those of Linux's ``input-event-codes.h``, which virtio keyboards send (VIRTIO 1.2, section 5.8.6).
"""

from __future__ import annotations

_ROWS = (
    # First number of each run of neighbours, and their names.
    (1, "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab"),
    (16, "q w e r t y u i o p leftbrace rightbrace enter leftctrl"),
    (30, "a s d f g h j k l semicolon apostrophe grave leftshift backslash"),
    (44, "z x c v b n m comma dot slash rightshift kpasterisk leftalt space capslock"),
    (59, "f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 numlock scrolllock"),
    (71, "kp7 kp8 kp9 kpminus kp4 kp5 kp6 kpplus kp1 kp2 kp3 kp0 kpdot"),
    (86, "102nd f11 f12 ro katakana hiragana henkan katakanahiragana muhenkan kpjpcomma"),
    (96, "kpenter rightctrl kpslash sysrq rightalt"),
    (102, "home up pageup left right end down pagedown insert delete"),
    (113, "mute volumedown volumeup power kpequal kpplusminus pause"),
    (121, "kpcomma hangeul hanja yen leftmeta rightmeta compose"),
    (128, "stop again props undo front copy open paste find cut help"),
    (183, "f13 f14 f15 f16 f17 f18 f19 f20 f21 f22 f23 f24"),
)
_ALIASES = {
    **{"ctrl": "leftctrl", "shift": "leftshift", "alt": "leftalt", "meta": "leftmeta", "altgr": "rightalt"},
    **{"escape": "esc", "return": "enter", "del": "delete", "ins": "insert", "pgup": "pageup", "pgdn": "pagedown"},
    **{"print": "sysrq", "menu": "compose", "super": "leftmeta", "win": "leftmeta"},
}

KEYS = {name: first + at for first, names in _ROWS for at, name in enumerate(names.split())}
"""Linux's number of each key; some have a second, shorter name."""
KEYS.update({alias: KEYS[name] for alias, name in _ALIASES.items()})

_UNSHIFTED = "minus- equal= leftbrace[ rightbrace] semicolon; apostrophe' grave` backslash\\ comma, dot. slash/"
_SHIFTED = (
    "1! 2@ 3# 4$ 5% 6^ 7& 8* 9( 0) minus_ equal+ leftbrace{ rightbrace} semicolon: apostrophe\" grave~ backslash| "
    "comma< dot> slash?"
)


def _us() -> dict[str, tuple[int, bool]]:
    found = {name: (code, False) for name, code in KEYS.items() if len(name) == 1}
    found |= {name.upper(): (code, True) for name, (code, _) in found.items() if name.isalpha()}
    for table, shifted in ((_UNSHIFTED, False), (_SHIFTED, True)):
        found |= {entry[-1]: (KEYS[entry[:-1]], shifted) for entry in table.split()}
    return found | {" ": (KEYS["space"], False), "\n": (KEYS["enter"], False), "\t": (KEYS["tab"], False)}


US = _us()
"""For each character that a US keyboard types: the key, and whether with shift."""

# Usages of the keyboard page (USB HID Usage Tables 1.4, section 10), in runs as above.
_USAGES = (
    (4, "a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2 3 4 5 6 7 8 9 0"),
    (40, "enter esc backspace tab space minus equal leftbrace rightbrace backslash backslash semicolon apostrophe"),
    (53, "grave comma dot slash capslock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12"),
    (70, "sysrq scrolllock pause insert home pageup delete end pagedown right left down up"),
    (83, "numlock kpslash kpasterisk kpminus kpplus kpenter kp1 kp2 kp3 kp4 kp5 kp6 kp7 kp8 kp9 kp0 kpdot"),
    (100, "102nd compose power kpequal f13 f14 f15 f16 f17 f18 f19 f20 f21 f22 f23 f24"),
    (116, "open help props front stop again undo cut copy paste find mute volumeup volumedown"),
    (133, "kpcomma"),
    (135, "ro katakanahiragana yen henkan muhenkan kpjpcomma"),
    (144, "hangeul hanja katakana hiragana"),
    (224, "leftctrl leftshift leftalt leftmeta rightctrl rightshift rightalt rightmeta"),
)

BY_USAGE = {first + at: KEYS[name] for first, names in _USAGES for at, name in enumerate(names.split())}
"""Linux's number for each usage of USB keyboards, which SDL's scancodes are too."""


def key_code(key: str | int) -> int:
    """The number of a key: by its name (in any case), or as it is. Raises ValueError if there is no such key."""
    if isinstance(key, str):
        code = KEYS.get(key.lower())
        if code is None:
            raise ValueError(f"there is no key {key!r}; keys are a, 1, f1, enter, ctrl, left, ... (docs/display.md)")
        return code
    if key not in _CODES:
        raise ValueError(f"there is no key of number {key}")
    return key


_CODES = frozenset(KEYS.values())
