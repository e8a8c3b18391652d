"""What the compiler of the description language refuses, and how it says so."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from polyvisor.adl import (
    Architecture,
    DescriptionError,
    Field,
    Registers,
    State,
    Trap,
    bit,
    bits,
    function,
    i8,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from polyvisor.adl.frontend import Compiler
from polyvisor.adl.functions import Function

toy = Architecture("errors", unit=4, max_length=4)
NUMBERS = (u64(1), u64(2), u64(3))


@toy.state
class Cpu(State):
    pc = Field(u64)
    flag = Field(u8)
    r = Registers(u64, 8)


@function
def typed(cpu, a: u32) -> u64:
    return u64(a)


@function
def endless(cpu, a: u64) -> u64:
    return endless(cpu, a) + 1


@function
def two(cpu) -> tuple[u64, bool]:
    return u64(1), True


@function
def no_end(cpu, a: u64) -> u64:
    if a == 1:
        return a


@function
def constant_only(cpu, n) -> u64:
    return u64(n)


def plain(x):
    return x


def mixed(cpu):
    cpu.r[0] = cpu.r[1] + u32(1)


def too_big(cpu):
    cpu.flag = cpu.flag + 256


def negative(cpu):
    cpu.r[0] = cpu.r[1] + -1


def wrong_field(cpu):
    cpu.flag = cpu.r[1]


def no_member(cpu):
    cpu.r[0] = cpu.q


def write_no_member(cpu):
    cpu.q = u64(1)


def whole_registers(cpu):
    cpu.r = u64(1)


def register_number(cpu):
    cpu.r[8] = u64(0)


def signed_index(cpu):
    cpu.r[i64(cpu.r[1])] = u64(0)


def write_pc(cpu):
    cpu.pc = u64(1)


def int_condition(cpu):
    if cpu.r[1]:
        cpu.r[0] = u64(1)


def int_and(cpu):
    cpu.flag = u8(cpu.r[1] and cpu.r[2] != 0)


def plain_join(cpu):
    n = 1
    if cpu.r[1] == 0:
        n = 2
    cpu.r[0] = u64(n)


def plain_and_typed(cpu):
    n = 1
    if cpu.r[1] == 0:
        n = cpu.r[2]
    cpu.r[0] = (n - 2) >> 1


def types_join(cpu):
    n = u64(1)
    if cpu.r[1] == 0:
        n = u32(2)
    cpu.r[0] = u64(n)


def plain_loop(cpu):
    n = 0
    while cpu.r[1] > 3:
        n = n + 1
        cpu.r[1] = cpu.r[1] - 1


def sometimes(cpu):
    if cpu.r[1] == 0:
        n = u64(1)
    cpu.r[0] = n


def shift_too_far(cpu):
    cpu.r[0] = cpu.r[1] << 64


def signed_shift(cpu):
    cpu.r[0] = cpu.r[1] << i32(cpu.r[2])


def shift_plain(cpu):
    cpu.r[0] = 1 << cpu.r[1]


def bool_arithmetic(cpu):
    cpu.flag = u8((cpu.r[1] == 0) + (cpu.r[2] == 0))


def invert_bool(cpu):
    cpu.flag = u8(~(cpu.r[1] == 0))


def bool_of_number(cpu):
    cpu.flag = u8(bool(cpu.r[1]))


def power(cpu):
    cpu.r[0] = cpu.r[1] ** 2


def divide(cpu):
    cpu.r[0] = cpu.r[1] / 2


def try_statement(cpu):
    try:  # noqa: SIM105
        cpu.r[0] = u64(1)
    except Trap:
        pass


def with_statement(cpu):
    with cpu:
        pass


def use_lambda(cpu):
    f = lambda x: x  # noqa: E731
    cpu.r[0] = f(u64(1))


def comprehension(cpu):
    cpu.r[0] = [x for x in (u64(1),)][0]  # noqa: RUF015


def assert_statement(cpu):
    assert cpu.r[1] == 0


def nested(cpu):
    def f():
        pass


def for_run_time(cpu):
    for i in cpu.r[1]:
        cpu.r[0] = i


def for_break(cpu):
    for _ in range(3):
        break


def recursion(cpu):
    cpu.r[0] = endless(cpu, cpu.r[1])


def argument_type(cpu):
    cpu.r[0] = typed(cpu, cpu.r[1])


def argument_count(cpu):
    cpu.r[0] = typed(cpu)


def keyword(cpu):
    cpu.r[0] = typed(cpu, a=u32(1))


def unpack(cpu):
    a, b, c = two(cpu)  # noqa: RUF059
    cpu.r[0] = a


def missing_return(cpu):
    cpu.r[0] = no_end(cpu, cpu.r[1])


def not_a_function(cpu):
    cpu.r[0] = plain(cpu.r[1])


def load_signed(cpu):
    cpu.r[0] = u64(cpu.load(i8, cpu.r[1]))


def load_address(cpu):
    cpu.r[0] = u64(cpu.load(u8, u32(cpu.r[1])))


def store_type(cpu):
    cpu.store(u16, cpu.r[1], cpu.r[2])


def number_attribute(cpu):
    cpu.r[0] = cpu.r[1].real


def number_index(cpu):
    cpu.r[0] = cpu.r[1][0]


def lookup_signed(cpu):
    cpu.r[0] = NUMBERS[i32(cpu.r[1])]


def bit_run_time(cpu):
    cpu.flag = u8(bit(cpu.r[1], cpu.r[2]))


def bits_range(cpu):
    cpu.r[0] = bits(cpu.r[1], 64, 60)


def fractional(cpu):
    cpu.r[0] = u64(cpu.r[1] * 1.5)


def compare_types(cpu):
    cpu.flag = u8(cpu.r[1] == cpu.flag)


def compare_too_big(cpu):
    cpu.flag = u8(cpu.flag == 256)


# The function, what is said, and the line that is shown (the function's last one if empty).
CASES: list[tuple[Any, str, str]] = [
    (mixed, "the right operand needs type u64, not u32; convert it", ""),
    (too_big, "256 does not fit the right operand, of type u8; convert it on purpose", ""),
    (negative, "-1 does not fit the right operand, of type u64; convert it on purpose", ""),
    (wrong_field, "cpu.flag needs type u8, not u64; convert it", ""),
    (no_member, "the CPU has no member 'q'", ""),
    (write_no_member, "the state has no member 'q'", ""),
    (whole_registers, "cpu.r has several registers; assign to cpu.r[i]", ""),
    (register_number, "r has 8 registers; there is no number 8", ""),
    (signed_index, "an index is an unsigned integer", ""),
    (write_pc, "to jump, write cpu.next_pc", ""),
    (int_condition, "a condition is a bool; compare the number with something, for example x != 0", "if cpu.r[1]:"),
    (int_and, "a condition is a bool", ""),
    (plain_join, "n gets different plain numbers; give it a type, for example u64(2)", "if cpu.r[1] == 0:"),
    (plain_and_typed, "n is a plain number on one way and has a type on another", "if cpu.r[1] == 0:"),
    (types_join, "n has different types on different ways (u32, u64); convert it", "if cpu.r[1] == 0:"),
    (plain_loop, "n changes in this loop; give it a type before, for example u64(0)", "while cpu.r[1] > 3:"),
    (sometimes, "n is not defined here (on every way that leads here)", ""),
    (shift_too_far, "shift of u64 by 64", ""),
    (signed_shift, "a shift amount is an unsigned integer", ""),
    (shift_plain, "the number 1 needs a type here, for example u64(1)", ""),
    (bool_arithmetic, "arithmetic on a bool; convert it first, for example u64(flag)", ""),
    (invert_bool, "~ of a bool; write not x", ""),
    (bool_of_number, "bool(x) is not part of the language; write x != 0", ""),
    (power, "operator Pow is not part of the language", ""),
    (divide, "operator Div is not part of the language", ""),
    (try_statement, "allowed are assignments, if, while, for over constants, return", "try:  # noqa: SIM105"),
    (with_statement, "with is not part of the language", "with cpu:"),
    (use_lambda, "Lambda is not part of the language", "f = lambda x: x  # noqa: E731"),
    (comprehension, "ListComp is not part of the language", ""),
    (assert_statement, "assert is not part of the language", ""),
    (nested, "functiondef is not part of the language", "def f():"),
    (for_run_time, "for runs over a constant range or tuple; use while for a loop at run time", "for i in cpu.r[1]:"),
    (for_break, "break and continue are allowed in while loops only; for is unrolled", "for _ in range(3):"),
    (recursion, "endless calls itself; recursion is not allowed", "return endless(cpu, a) + 1"),
    (argument_type, "a of typed needs type u32, not u64; convert it", ""),
    (argument_count, "typed takes 2 arguments, not 1", ""),
    (keyword, "arguments are given by position", ""),
    (unpack, "3 names on the left need a tuple of as many values", "a, b, c = two(cpu)  # noqa: RUF059"),
    (missing_return, "the end of the function is reached without a return", "def no_end(cpu, a: u64) -> u64:"),
    (not_a_function, "plain is not a @function; it takes constants only", ""),
    (load_signed, "memory is accessed as u8, u16, u32 or u64; convert afterwards", ""),
    (load_address, "the address needs type u64, not u32; convert it", ""),
    (store_type, "the stored value needs type u16, not u64; convert it", ""),
    (number_attribute, "a number has no attribute 'real'", ""),
    (number_index, "a number cannot be indexed; use bit() or bits()", ""),
    (lookup_signed, "an index is an unsigned integer", ""),
    (bit_run_time, "bit(x, n) takes a constant n; write (x >> n) & 1 != 0", ""),
    (bits_range, "bits 64..60 of u64", ""),
    (fractional, "the right operand is a number, not 1.5", ""),
    (compare_types, "the right operand needs type u64, not u8; convert it", ""),
    (compare_too_big, "256 does not fit the right operand, of type u8", ""),
]


@pytest.mark.parametrize("described, message, line", CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_refused_with_file_line_and_reason(described, message, line):
    with pytest.raises(DescriptionError) as caught:
        Compiler(toy, dict(Cpu.members)).instruction(Function(described), {}, "test")
    head, _, shown = str(caught.value).partition("\n    ")
    assert message in head
    lines, start = inspect.getsourcelines(described)
    assert shown == (line or lines[-1].strip())
    file, number, _ = head.split(":", 2)
    assert Path(file).name == Path(__file__).name
    if shown in [text.strip() for text in lines]:
        assert start <= int(number) < start + len(lines)
    assert Path(__file__).read_text().splitlines()[int(number) - 1].strip() == shown


def test_cpython_refuses_the_same_mistakes():
    """The reference notices at run time what the compiler refuses."""
    for wrong in (
        lambda: u64(1) + u32(1), lambda: u8(1) + 256, lambda: u64(1) << 64, lambda: u64(1) << i32(1),
        lambda: u64(1) == u8(1), lambda: u8(1) == 256, lambda: 256 // u8(1),
    ):
        with pytest.raises(DescriptionError):
            wrong()


def test_a_plain_dividend_has_the_divisors_type():
    assert (7 // i64(-2), 7 % i64(-2)) == (i64(-3), i64(1))
    assert type(7 // i64(-2)) is i64 and type(+u8(3)) is u8


@function
def always_traps(cpu, a: u64) -> tuple[u64, bool]:
    if NUMBERS[0] == 1:
        raise Trap(1)
    return a, True


def after_a_trap(cpu):
    n, flag = always_traps(cpu, cpu.r[1])
    cpu.r[0] = n + 1 if flag and n != 0 else u64(10) // n
    while cpu.r[0] != 0:
        cpu.r[0] = cpu.r[0] - n


def test_code_after_a_certain_trap_is_allowed():
    compiled = Compiler(toy, dict(Cpu.members)).instruction(Function(after_a_trap), {}, "test")
    assert compiled.effects.traps
    assert not compiled.effects.writes
