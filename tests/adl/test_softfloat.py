"""polyvisor.adl.softfloat against exact rational arithmetic, and against the host for rounding to nearest."""

import math
import random
import struct
import sys
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ieee_oracle import (
    NV,
    NX,
    ORACLES,
    RNE,
    RTZ,
    SHAPE,
    UF,
    inf,
    integral,
    nan,
    near,
    parts,
    related,
    rounded,
    specials,
)

from polyvisor.adl import i32, i64, softfloat, u8, u32, u64
from polyvisor.adl.softfloat import (
    BINARY32,
    BINARY64,
    CANONICAL_NAN,
    FIRST_NAN,
    NAN_TO_SMALLEST,
    NAN_TO_ZERO,
    SIGNALING_NAN_FIRST,
    Format,
    Rules,
)

MODES = range(5)
FORMATS = [BINARY32, BINARY64]
ids = ["binary32", "binary64"]
formats = pytest.mark.parametrize("fmt", FORMATS, ids=ids)

def run(name, fmt, mode, operands):
    value, flags = getattr(softfloat, name)(fmt, *(u64(x) for x in operands), u32(mode))
    assert type(value) is u64 and type(flags) is u8
    return int(value), int(flags)


def check(name, fmt, mode, operands):
    expected = ORACLES[name][0](fmt.bits, mode, *operands)
    got = run(name, fmt, mode, operands)
    assert got == expected, (
        f"{name} binary{fmt.bits} mode {mode} of {[hex(x) for x in operands]}: {got[0]:#x} {got[1]:05b}, "
        f"not {expected[0]:#x} {expected[1]:05b}"
    )


def check_host(name, fmt, operands):
    """the fast path: where it is certain, it is right, also when inexact was raised before"""
    expected, flags = ORACLES[name][0](fmt.bits, RNE, *operands)
    for inexact in (False, True):
        value, certain = getattr(softfloat, "host_" + name)(fmt, *(u64(x) for x in operands), inexact)
        if certain:
            assert int(value) == expected and flags & ~(NX if inexact else 0) == 0, (
                f"host_{name} binary{fmt.bits} of {[hex(x) for x in operands]}, inexact {inexact}: {value!r}, "
                f"not {expected:#x} {flags:05b}"
            )
    return certain


@formats
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_special_pairs(fmt, name):
    rng = random.Random(f"pairs {name} {fmt.bits}")
    grid = specials(fmt.bits)
    for a in grid:
        for b in grid:
            check(name, fmt, rng.randrange(5), (a, b))
            if rng.random() < 0.2:
                check_host(name, fmt, (a, b))


@pytest.mark.slow
@formats
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_special_pairs_in_all_modes(fmt, name):
    grid = specials(fmt.bits)
    for a in grid:
        for b in grid:
            check_host(name, fmt, (a, b))
            for mode in MODES:
                check(name, fmt, mode, (a, b))


@formats
def test_special_triples(fmt):
    rng = random.Random(fmt.bits)
    grid = specials(fmt.bits)
    for _ in range(2000):
        check("fma", fmt, rng.randrange(5), rng.choices(grid, k=3))


@formats
@pytest.mark.parametrize("name", list(ORACLES))
def test_random_operands(fmt, name):
    rng = random.Random(f"random {name} {fmt.bits}")
    for _ in range(1200):
        operands = related(fmt.bits, rng, ORACLES[name][1])
        check(name, fmt, rng.randrange(5), operands)
        if rng.random() < 0.4:
            check_host(name, fmt, operands)


def test_every_exponent_of_binary32():
    rng = random.Random(32)
    partners = [0x3F80_0001, 0x0080_0000, 0x7F7F_FFFF, 0x3FFF_FFFF]
    for exponent in range(256):
        for fraction in (0, 1, 0x3F_FFFF, 0x40_0000, 0x7F_FFFF, rng.getrandbits(23)):
            a = exponent << 23 | fraction
            check("sqrt", BINARY32, rng.randrange(5), (a,))
            operands = (a ^ rng.getrandbits(1) << 31, rng.choice(partners), rng.getrandbits(31))
            for name in ("add", "mul", "div", "fma"):
                check(name, BINARY32, rng.randrange(5), operands[: ORACLES[name][1]])


@pytest.mark.slow
@formats
@pytest.mark.parametrize("name", list(ORACLES))
def test_many_random_operands(fmt, name):
    rng = random.Random(f"many {name} {fmt.bits}")
    for _ in range(6000):
        operands = related(fmt.bits, rng, ORACLES[name][1])
        for mode in MODES:
            check(name, fmt, mode, operands)
        check_host(name, fmt, operands)


@st.composite
def problems(draw):
    """an operation with operands whose exponents depend on each other"""
    fmt = draw(st.sampled_from(FORMATS))
    p, _, emax = SHAPE[fmt.bits]
    name = draw(st.sampled_from(list(ORACLES)))
    exponents = [draw(st.integers(0, 2 * emax + 1))]
    for _ in range(ORACLES[name][1] - 1):
        offset = draw(st.integers(-p - 3, p + 3))
        first = exponents[0]
        base = draw(st.sampled_from([first, 2 * emax - first, emax - first, sum(exponents) - emax]))
        exponents.append(min(max(base + offset, 0), 2 * emax + 1))
    fraction = st.integers(0, (1 << (p - 1)) - 1)
    simple = st.builds(lambda n, s: (n << s) & ((1 << (p - 1)) - 1), st.integers(-3, 3), st.integers(0, p - 1))
    operands = [
        draw(st.integers(0, 1)) << (fmt.bits - 1) | e << (p - 1) | draw(st.one_of(fraction, simple)) for e in exponents
    ]
    return name, fmt, draw(st.sampled_from(MODES)), operands


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems())
def test_found_operands(problem):
    check(*problem)
    name, fmt, _, operands = problem
    check_host(name, fmt, operands)


def host_value(bits, a):
    return struct.unpack("<d" if bits == 64 else "<f", a.to_bytes(bits // 8, "little"))[0]


def test_the_oracle_and_we_agree_with_the_hardware():
    """Python's own floats, which are the hardware's binary64"""
    rng = random.Random(7)
    operations = {"add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y}
    for _ in range(1500):
        a, b = related(64, rng, 2)
        x, y = host_value(64, a), host_value(64, b)
        if math.isnan(x) or math.isnan(y):
            continue
        results = {name: operation(x, y) for name, operation in operations.items()}
        if y:
            results["div"] = x / y
        for name, result in results.items():
            if not math.isnan(result):
                assert run(name, BINARY64, RNE, (a, b))[0] == int.from_bytes(struct.pack("<d", result), "little")
        if x >= 0:
            root = int.from_bytes(struct.pack("<d", math.sqrt(x)), "little")
            assert run("sqrt", BINARY64, RNE, (a,))[0] == root


@formats
def test_just_below_the_smallest_normal(fmt):
    """results that are tiny but round to the smallest normal number, which is all the fast path sees of them"""
    p, _, emax = SHAPE[fmt.bits]
    below_one, smallest = (emax << (p - 1)) - 1, 1 << (p - 1)
    for sign in (0, 1 << (fmt.bits - 1)):
        for name, operands in {
            "mul": (below_one, smallest | sign),
            "div": (smallest - 1, below_one - 1 | sign),
            "fma": (below_one, smallest | sign, sign),
        }.items():
            assert ORACLES[name][0](fmt.bits, RNE, *operands) == (smallest | sign, UF | NX) or name == "div"
            check_host(name, fmt, operands)
    tiny = u64(0x380F_FFFF_E000_0000)
    assert softfloat.convert(BINARY64, BINARY32, tiny, u32(RNE)) == (0x0080_0000, UF | NX)
    assert not softfloat.host_narrow(BINARY64, BINARY32, tiny, True)[1]


@formats
def test_fast_path_is_taken(fmt):
    """numbers of every day are certain on the fast path: integers always, others once inexact is raised"""
    def pattern(value):
        return int.from_bytes(struct.pack("<d" if fmt.bits == 64 else "<f", value), "little")

    for x in (1.0, -3.0, 1000.0):
        for y in (2.0, -8.0, 512.0):
            a, b = pattern(x), pattern(y)
            for name in ("add", "sub", "mul", "div"):
                assert getattr(softfloat, "host_" + name)(fmt, u64(a), u64(b), False)[1]
            assert softfloat.host_fma(fmt, u64(a), u64(b), u64(a), False)[1]
    third, tenth, big = (u64(pattern(x)) for x in (1 / 3, -0.1, 1e15))
    for a in (third, tenth, big):
        for b in (third, tenth, big):
            for name in ("add", "sub", "mul", "div"):
                assert getattr(softfloat, "host_" + name)(fmt, a, b, True)[1]
            assert softfloat.host_fma(fmt, a, b, third, True)[1]
    assert softfloat.host_sqrt(fmt, third, True)[1] and not softfloat.host_sqrt(fmt, third, False)[1]
    assert softfloat.host_sqrt(fmt, u64(pattern(9.0)), False) == (u64(pattern(3.0)), True)
    assert softfloat.host_mul(fmt, u64(0), tenth, False) == (u64(pattern(-0.0)), True)
    for integer in (i32, u32, i64, u64):
        assert softfloat.host_from_integer(fmt, integer, u64(12345), False) == (u64(pattern(12345.0)), True)
        assert softfloat.host_to_integer(fmt, integer, u64(pattern(12345.0)), u32(RNE), False) == (12345, True)
        assert softfloat.host_to_integer(fmt, integer, u64(pattern(2.75)), u32(RTZ), True) == (2, True)
        assert softfloat.host_to_integer(fmt, integer, u64(pattern(2.75)), u32(RNE), True) == (3, True)


# Conversions


@pytest.mark.parametrize(("source", "target"), [(BINARY32, BINARY64), (BINARY64, BINARY32)], ids=["widen", "narrow"])
def test_conversions_between_formats(source, target):
    rng = random.Random(source.bits)
    values = specials(source.bits) + [near(source.bits, rng) for _ in range(1500)]
    if source.bits == 64:
        # Around binary32's limits and midpoints.
        for a in specials(32) + [near(32, rng) for _ in range(400)]:
            wide = int(softfloat.convert(BINARY32, BINARY64, u64(a), u32(0))[0])
            values += [wide, wide + 1, wide - 1 & 2**64 - 1, wide + (1 << 28), wide + (1 << 28) + 1]
    for a in values:
        mode = rng.randrange(5)
        sign, kind, value = parts(source.bits, a)
        if "nan" in kind:
            expect = lambda m: (nan(target.bits), NV if kind == "snan" else 0)  # noqa: E731, B023
        elif kind == "inf":
            expect = lambda m: (inf(target.bits, sign), 0)  # noqa: E731, B023
        elif kind == "zero":
            expect = lambda m: (sign << (target.bits - 1), 0)  # noqa: E731, B023
        else:
            expect = lambda m: rounded(target.bits, value, m)  # noqa: E731, B023
        got = softfloat.convert(source, target, u64(a), u32(mode))
        assert tuple(map(int, got)) == expect(mode), (hex(a), mode)
        expected, flags = expect(RNE)
        if source.bits == 32:
            result, certain = softfloat.host_widen(source, target, u64(a))
            assert certain == ("nan" not in kind)
            assert not certain or (int(result) == expected and flags == 0)
        else:
            for inexact in (False, True):
                result, certain = softfloat.host_narrow(source, target, u64(a), inexact)
                assert not certain or (int(result) == expected and flags & ~int(inexact) == 0), hex(a)


INTEGERS = [i32, u32, i64, u64]


def interesting_floats(fmt, rng):
    """numbers around the limits of the integer types, and around halves"""
    values = specials(fmt.bits) + [near(fmt.bits, rng) for _ in range(150)]
    for n in (0, 1, 2, 3, 2**23, 2**31, 2**32, 2**51, 2**52, 2**53, 2**63, 2**64):
        for d in (0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), 1, Fraction(3, 2)):
            for x in (n + d, n - d):
                if x:
                    pattern, _ = rounded(fmt.bits, Fraction(x), RTZ)
                    values += [pattern, pattern ^ 1 << (fmt.bits - 1), max(pattern - 1, 0), pattern + 1]
    return values


@formats
@pytest.mark.parametrize("integer", INTEGERS, ids=lambda t: t.__name__)
def test_to_integer(fmt, integer):
    rng = random.Random(f"{fmt.bits} {integer.__name__}")
    lowest, highest = (-(2 ** (integer.bits - 1)), 2 ** (integer.bits - 1) - 1) if integer.signed else (
        0, 2**integer.bits - 1)
    for a in interesting_floats(fmt, rng):
        sign, kind, value = parts(fmt.bits, a)
        for mode in (rng.randrange(5), RTZ):
            if "nan" in kind:
                expected = highest, NV
            elif kind == "inf":
                expected = lowest if sign else highest, NV
            else:
                whole = integral(value, mode)
                if lowest <= whole <= highest:
                    expected = whole, NX if whole != value else 0
                else:
                    expected = lowest if sign else highest, NV
            result, flags = softfloat.to_integer(fmt, integer, u64(a), u32(mode))
            assert (int(result), int(flags)) == (expected[0] & 2**64 - 1, expected[1]), (hex(a), mode)
            for inexact in (False, True):
                result, certain = softfloat.host_to_integer(fmt, integer, u64(a), u32(mode), inexact)
                if certain:
                    assert int(result) == expected[0] & 2**64 - 1, (hex(a), mode)
                    assert expected[1] & ~int(inexact) == 0


@formats
@pytest.mark.parametrize("integer", INTEGERS, ids=lambda t: t.__name__)
def test_from_integer(fmt, integer):
    rng = random.Random(f"{fmt.bits} {integer.__name__}")
    values = {0, 1, 2, 3, 5, 2**64 - 1}
    for k in range(64):
        for d in (-2, -1, 0, 1, 2, 1 << max(k - 24, 0), 3 << max(k - 25, 0), 1 << max(k - 53, 0), 3 << max(k - 54, 0)):
            values.add(2**k + d & 2**64 - 1)
            values.add(-(2**k) - d & 2**64 - 1)
    values |= {rng.getrandbits(64) >> rng.randrange(64) for _ in range(200)}
    for v in sorted(values):
        number = int(integer(v))
        mode = rng.randrange(5)

        def expect(mode, number=number):
            return rounded(fmt.bits, Fraction(number), mode) if number else (0, 0)

        got = softfloat.from_integer(fmt, integer, u64(v), u32(mode))
        assert tuple(map(int, got)) == expect(mode), (number, mode)
        pattern, flags = expect(RNE)
        for inexact in (False, True):
            result, certain = softfloat.host_from_integer(fmt, integer, u64(v), inexact)
            assert not certain or (int(result) == pattern and flags & ~int(inexact) == 0), number


@formats
def test_round_to_integral(fmt):
    rng = random.Random(fmt.bits)
    for a in interesting_floats(fmt, rng):
        mode = rng.randrange(5)
        sign, kind, value = parts(fmt.bits, a)
        if "nan" in kind:
            expected = nan(fmt.bits), NV if kind == "snan" else 0
        elif kind == "inf" or integral(value, mode) == value:
            expected = a, 0
        elif integral(value, mode) == 0:
            expected = sign << (fmt.bits - 1), NX
        else:
            expected = rounded(fmt.bits, Fraction(integral(value, mode)), mode)[0], NX
        got = softfloat.round_to_integral(fmt, True, u64(a), u32(mode))
        assert tuple(map(int, got)) == expected, (hex(a), mode)
        quiet = softfloat.round_to_integral(fmt, False, u64(a), u32(mode))
        assert tuple(map(int, quiet)) == (expected[0], expected[1] & ~NX)


# Comparisons


@formats
def test_comparisons(fmt):
    grid = specials(fmt.bits)
    for a in grid:
        for b in grid:
            (_, ka, va), (_, kb, vb) = parts(fmt.bits, a), parts(fmt.bits, b)
            ordered = "nan" not in ka + kb
            x, y = ((Fraction(-1 if p >> (fmt.bits - 1) else 1) * 2**2000 if k == "inf" else v)
                    for p, k, v in ((a, ka, va), (b, kb, vb)))
            results = {
                "equal": ordered and x == y, "less": ordered and x < y, "less_equal": ordered and x <= y,
            }
            for name, expected in results.items():
                quiet = getattr(softfloat, name)(fmt, False, u64(a), u64(b))
                assert quiet == (expected, NV if "snan" in (ka, kb) else 0), (name, hex(a), hex(b))
                loud = getattr(softfloat, name)(fmt, True, u64(a), u64(b))
                assert loud == (expected, 0 if ordered else NV), (name, hex(a), hex(b))
            if "nan" in ka and "nan" in kb:
                least = greatest = nan(fmt.bits)
            elif not ordered:
                least = greatest = b if "nan" in ka else a
            else:
                # Of two zeros, the negative one is smaller.
                key = lambda p, v: (v, -(p >> (fmt.bits - 1)))  # noqa: E731
                least, greatest = (a, b) if key(a, x) <= key(b, y) else (b, a)
            flags = NV if "snan" in (ka, kb) else 0
            assert softfloat.minimum_number(fmt, u64(a), u64(b)) == (least, flags)
            assert softfloat.maximum_number(fmt, u64(a), u64(b)) == (greatest, flags)


@formats
def test_classify(fmt):
    _, emin, _ = SHAPE[fmt.bits]
    for a in specials(fmt.bits):
        sign, kind, value = parts(fmt.bits, a)
        if "nan" in kind:
            expected = 9 if kind == "qnan" else 8
        else:
            size = {"inf": 0, "zero": 3}.get(kind, 2 if value is None or abs(value) < Fraction(2) ** emin else 1)
            expected = size if sign else 7 - size
        assert softfloat.classify(fmt, u64(a)) == expected, hex(a)


# Rules of other architectures


def test_tininess_before_rounding():
    # The product is just below the smallest normal number and rounds to it.
    fmt = Format(64, 53, Rules(tiny_before_rounding=True))
    a, b = 0x3FF0_0000_0000_0001, 0x000F_FFFF_FFFF_FFFF
    assert run("mul", BINARY64, RNE, (a, b)) == (0x0010_0000_0000_0000, NX)
    assert run("mul", fmt, RNE, (a, b)) == (0x0010_0000_0000_0000, NX | UF)
    rng = random.Random(3)
    for bits, precision in ((32, 24), (64, 53)):
        fmt = Format(bits, precision, Rules(tiny_before_rounding=True))
        for _ in range(300):
            a, b = near(bits, rng), near(bits, rng)
            (_, ka, va), (_, kb, vb) = parts(bits, a), parts(bits, b)
            if ka == kb == "finite":
                mode = rng.randrange(5)
                assert run("mul", fmt, mode, (a, b)) == rounded(bits, va * vb, mode, before=True)


def test_nan_rules():
    quiet, signaling, other = 0xFFC0_0001, 0x7F80_0002, 0x7FC0_0003
    one = 0x3F80_0000

    def of(rule, *operands):
        name = {1: "sqrt", 2: "add", 3: "fma"}[len(operands)]
        return run(name, Format(32, 24, Rules(nan=rule, negative_nan=True)), RNE, operands)

    assert of(CANONICAL_NAN, quiet, other) == (0xFFC0_0000, 0)
    assert of(FIRST_NAN, quiet, other) == (quiet, 0)
    assert of(FIRST_NAN, one, signaling) == (0x7FC0_0002, NV)
    assert of(FIRST_NAN, quiet, signaling) == (quiet, NV)
    assert of(SIGNALING_NAN_FIRST, quiet, signaling) == (0x7FC0_0002, NV)
    assert of(SIGNALING_NAN_FIRST, one, quiet, other) == (quiet, 0)
    assert of(FIRST_NAN, one, one, other) == (other, 0)
    assert of(FIRST_NAN, 0xBF80_0000) == (0xFFC0_0000, NV)
    assert of(FIRST_NAN, signaling) == (0x7FC0_0002, NV)
    keep = Rules(nan=FIRST_NAN)
    narrow, wide = Format(32, 24, keep), Format(64, 53, keep)
    assert softfloat.convert(narrow, wide, u64(0xFF80_0001), u32(0)) == (0xFFF8_0000_2000_0000, NV)
    assert softfloat.convert(wide, narrow, u64(0x7FF8_0000_2000_0001), u32(0)) == (0x7FC0_0001, 0)
    no_invalid = Format(32, 24, Rules(zero_times_infinity=False))
    assert run("fma", BINARY32, RNE, (0, 0x7F80_0000, quiet)) == (0x7FC0_0000, NV)
    assert run("fma", no_invalid, RNE, (0, 0x7F80_0000, quiet)) == (0x7FC0_0000, 0)
    assert run("fma", no_invalid, RNE, (0, 0x7F80_0000, one)) == (0x7FC0_0000, NV)


def test_integer_rules():
    x87 = Format(64, 53, Rules(nan_to_integer=NAN_TO_SMALLEST, saturate=False))
    large, a_nan = u64(0x7FE0_0000_0000_0000), u64(0x7FF8_0000_0000_0000)
    for value in (large, large | 1 << 63, a_nan):
        assert softfloat.to_integer(x87, i32, value, u32(0)) == (0xFFFF_FFFF_8000_0000, NV)
    to_zero = Format(64, 53, Rules(nan_to_integer=NAN_TO_ZERO))
    assert softfloat.to_integer(to_zero, i64, a_nan, u32(0)) == (0, NV)


# The rules of the description language that CPython does not enforce


def test_variables_keep_one_type():
    """in each function, for each choice of compile-time parameters, every variable has one type"""
    seen = {}
    folder = softfloat.__file__.rsplit("/", 1)[0]

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(folder) or frame.f_code.co_name in dir(Format):
            return None
        key = tuple(
            repr(v) for n, v in frame.f_locals.items() if n in ("fmt", "integer", "source", "target", "signaling")
        )

        def line(frame, event, argument):
            for name, value in frame.f_locals.items():
                seen.setdefault((frame.f_code.co_name, key, name), set()).add(type(value).__name__)
            return line

        return line

    rng = random.Random(5)
    sys.settrace(trace)
    try:
        for fmt in FORMATS:
            for name, (_, count) in ORACLES.items():
                for _ in range(40):
                    operands = [u64(x) for x in related(fmt.bits, rng, count)]
                    getattr(softfloat, name)(fmt, *operands, u32(rng.randrange(5)))
                    getattr(softfloat, "host_" + name)(fmt, *operands, rng.random() < 0.5)
            for integer in INTEGERS:
                for _ in range(40):
                    a = u64(near(fmt.bits, rng))
                    softfloat.to_integer(fmt, integer, a, u32(rng.randrange(5)))
                    softfloat.host_to_integer(fmt, integer, a, u32(rng.randrange(5)), True)
                    softfloat.from_integer(fmt, integer, u64(rng.getrandbits(64)), u32(rng.randrange(5)))
                    softfloat.host_from_integer(fmt, integer, u64(rng.getrandbits(20)), True)
            for a in specials(fmt.bits)[::3]:
                softfloat.classify(fmt, u64(a))
                softfloat.round_to_integral(fmt, True, u64(a), u32(0))
                softfloat.minimum_number(fmt, u64(a), u64(1))
    finally:
        sys.settrace(None)
    assert len(seen) > 300
    mixed = {key: kinds for key, kinds in seen.items() if len(kinds) > 1}
    assert not mixed
    # Plain integers are constants only.
    plain = {(key[0], key[2]) for key, kinds in seen.items() if kinds == {"int"}}
    assert plain <= {("div", "_")}
