"""What IEEE 754 says, in rational numbers: slow, simple, and independent of polyvisor. NaN results are RISC-V's."""

import math
from fractions import Fraction

NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16
RNE, RTZ, RDN, RUP, RMM = range(5)
# The oracle: values as rational numbers, and one rounding function by the definitions of the standard.
# (precision, smallest exponent, largest exponent)
SHAPE = {32: (24, -126, 127), 64: (53, -1022, 1023)}


def parts(bits, a):
    """sign, kind ("zero" "finite" "inf" "qnan" "snan"), value"""
    p, emin, emax = SHAPE[bits]
    sign, e, f = a >> (bits - 1), a >> (p - 1) & (2 * emax + 1), a & ((1 << (p - 1)) - 1)
    if e == 2 * emax + 1:
        if f == 0:
            return sign, "inf", None
        return sign, "qnan" if f >> (p - 2) else "snan", None
    size = Fraction(f) * Fraction(2) ** (emin - p + 1) if e == 0 else (
        Fraction(f | 1 << (p - 1)) * Fraction(2) ** (e - emax - p + 1)
    )
    return sign, "finite" if size else "zero", -size if sign else size


def floor_log2(x):
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def integral(x, mode):
    """x rounded to an integer"""
    low = math.floor(x)
    if x == low:
        return low
    if mode == RTZ:
        return math.trunc(x)
    if mode == RDN:
        return low
    if mode == RUP:
        return low + 1
    if x - low != Fraction(1, 2):
        return low if x - low < Fraction(1, 2) else low + 1
    if mode == RNE:
        return low if low % 2 == 0 else low + 1
    return low + 1 if x > 0 else low


def rounded(bits, x, mode, before=False):
    """pattern and flags of x, not zero"""
    p, emin, emax = SHAPE[bits]
    sign = int(x < 0)
    e = floor_log2(abs(x))

    def at(unit):
        return integral(x / Fraction(2) ** unit, mode) * Fraction(2) ** unit

    unbounded = at(e - p + 1)
    value = at(max(e, emin) - p + 1)
    flags = NX if value != x else 0
    tiny = abs(x if before else unbounded) < Fraction(2) ** emin
    if tiny and flags:
        flags |= UF
    top = sign << (bits - 1)
    if abs(unbounded) >= Fraction(2) ** (emax + 1):
        away = mode in (RNE, RMM) or mode == (RDN if sign else RUP)
        return top | ((2 * emax + 1) << (p - 1)) - (0 if away else 1), OF | NX
    if value == 0:
        return top, flags
    e = max(floor_log2(abs(value)), emin)
    mantissa = abs(value) / Fraction(2) ** (e - p + 1)
    assert mantissa.denominator == 1
    mantissa = int(mantissa)
    biased = e + emax if mantissa >> (p - 1) else 0
    return top | biased << (p - 1) | mantissa & ((1 << (p - 1)) - 1), flags


def nan(bits):
    return 0x7FC00000 if bits == 32 else 0x7FF8000000000000


def inf(bits, sign):
    p, _, emax = SHAPE[bits]
    return (2 * emax + 1) << (p - 1) | sign << (bits - 1)


def oracle_add(bits, mode, a, b, subtract=False):
    (sa, ka, va), (sb, kb, vb) = parts(bits, a), parts(bits, b)
    if "nan" in ka + kb:
        return nan(bits), NV if "snan" in (ka, kb) else 0
    if subtract:
        sb, vb = 1 - sb, None if vb is None else -vb
    if "inf" in (ka, kb):
        if ka == kb and sa != sb:
            return nan(bits), NV
        return inf(bits, sa if ka == "inf" else sb), 0
    if va + vb == 0:
        sign = sa if ka == kb == "zero" and sa == sb else int(mode == RDN)
        return sign << (bits - 1), 0
    return rounded(bits, va + vb, mode)


def oracle_sub(bits, mode, a, b):
    return oracle_add(bits, mode, a, b, True)


def oracle_mul(bits, mode, a, b):
    (sa, ka, va), (sb, kb, vb) = parts(bits, a), parts(bits, b)
    if "nan" in ka + kb:
        return nan(bits), NV if "snan" in (ka, kb) else 0
    if "inf" in (ka, kb):
        return (nan(bits), NV) if "zero" in (ka, kb) else (inf(bits, sa ^ sb), 0)
    if "zero" in (ka, kb):
        return (sa ^ sb) << (bits - 1), 0
    return rounded(bits, va * vb, mode)


def oracle_div(bits, mode, a, b):
    (sa, ka, va), (sb, kb, vb) = parts(bits, a), parts(bits, b)
    if "nan" in ka + kb:
        return nan(bits), NV if "snan" in (ka, kb) else 0
    if ka == kb and ka in ("inf", "zero"):
        return nan(bits), NV
    if ka == "inf" or kb == "zero":
        return inf(bits, sa ^ sb), 0 if ka == "inf" else DZ
    if ka == "zero" or kb == "inf":
        return (sa ^ sb) << (bits - 1), 0
    return rounded(bits, va / vb, mode)


def oracle_sqrt(bits, mode, a):
    s, k, v = parts(bits, a)
    if "nan" in k:
        return nan(bits), NV if k == "snan" else 0
    if k == "zero":
        return a, 0
    if s:
        return nan(bits), NV
    if k == "inf":
        return a, 0
    # Enough bits of the root, and one below them that says whether there is more.
    scale = 400 + 2 * abs(floor_log2(v))
    scaled = v * Fraction(4) ** scale
    assert scaled.denominator == 1
    root = math.isqrt(int(scaled))
    more = Fraction(1, 2) if root * root != scaled else 0
    return rounded(bits, (root + more) / Fraction(2) ** scale, mode)


def oracle_fma(bits, mode, a, b, c):
    (sa, ka, va), (sb, kb, vb), (sc, kc, vc) = (parts(bits, x) for x in (a, b, c))
    bad = {ka, kb} == {"inf", "zero"}
    if "nan" in ka + kb + kc:
        return nan(bits), NV if "snan" in (ka, kb, kc) or bad else 0
    if bad:
        return nan(bits), NV
    if "inf" in (ka, kb, kc):
        product = "inf" in (ka, kb)
        if product and kc == "inf" and sa ^ sb != sc:
            return nan(bits), NV
        return inf(bits, sa ^ sb if product else sc), 0
    if va * vb + vc == 0:
        sign = sc if va * vb == 0 and vc == 0 and sa ^ sb == sc else int(mode == RDN)
        return sign << (bits - 1), 0
    return rounded(bits, va * vb + vc, mode)


ORACLES = {
    "add": (oracle_add, 2), "sub": (oracle_sub, 2), "mul": (oracle_mul, 2), "div": (oracle_div, 2),
    "sqrt": (oracle_sqrt, 1), "fma": (oracle_fma, 3),
}


def specials(bits):
    p, _, emax = SHAPE[bits]
    hidden, top = 1 << (p - 1), (2 * emax + 1) << (p - 1)
    sizes = [
        0, 1, 2, 3, hidden - 1, hidden // 2, hidden, hidden + 1, 2 * hidden - 1, 2 * hidden,
        emax << (p - 1), (emax << (p - 1)) + 1, (emax << (p - 1)) - 1, (emax + 1) << (p - 1),
        (emax << (p - 1)) + (hidden >> 1), (emax - 1 << (p - 1)),
        (emax + p << (p - 1)) + 1, (emax - p << (p - 1)) + hidden - 1,
        top - 1, top - 2, top - hidden, top, top + 1, top + hidden // 2, top + hidden - 1, top + hidden // 2 - 1,
    ]
    return [s | sign << (bits - 1) for s in sizes for sign in (0, 1)]


def near(bits, rng):
    """a random pattern with simple or full significand, and often an extreme exponent"""
    p, _, emax = SHAPE[bits]
    e = rng.choice([0, 1, 2, rng.randrange(2 * p), emax + rng.randrange(-p, p), 2 * emax - rng.randrange(3),
                    rng.randrange(2 * emax + 2)])
    kind = rng.randrange(4)
    if kind == 0:
        f = rng.getrandbits(p - 1)
    elif kind == 1:
        f = rng.getrandbits(8) << (p - 9)
    elif kind == 2:
        f = (1 << (p - 1)) - 1 - (rng.getrandbits(4) << rng.randrange(p - 5))
    else:
        f = rng.getrandbits(5) << rng.randrange(p - 6)
    return rng.getrandbits(1) << (bits - 1) | e << (p - 1) | f


def related(bits, rng, count):
    """operands with exponents that make operations interesting: close to each other, or to a limit"""
    p, _, emax = SHAPE[bits]
    values = [near(bits, rng)]
    while len(values) < count:
        if rng.random() < 0.4:
            values.append(near(bits, rng))
            continue
        e = (values[0] >> (p - 1)) & (2 * emax + 1)
        target = rng.choice([e, 2 * emax - e, e - emax, emax - e, 3 * emax - e, 2 * e - emax])
        e = min(max(target + rng.randrange(-p - 3, p + 4) // rng.choice([1, 8, 40]), 0), 2 * emax + 1)
        values.append(near(bits, rng) & ~inf(bits, 0) | e << (p - 1))
    return values
