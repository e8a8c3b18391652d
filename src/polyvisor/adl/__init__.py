"""The architecture description language: machines as typed Python functions."""

from .architecture import Architecture, Instruction, SystemCall
from .builtins import (
    bit,
    bits,
    bswap,
    clz,
    ctz,
    ieee_add,
    ieee_convert,
    ieee_div,
    ieee_fma,
    ieee_mul,
    ieee_sqrt,
    ieee_sub,
    likely,
    popcount,
    sext,
    unlikely,
)
from .functions import FETCH, READ, WRITE, Function, Primitives, Table, Trap, function
from .state import Field, Registers, State
from .types import DescriptionError, Int, i8, i16, i32, i64, i128, u8, u16, u32, u64, u128

__all__ = [
    "FETCH", "READ", "WRITE", "Architecture", "DescriptionError", "Field", "Function", "Instruction", "Int",
    "Primitives", "Registers", "State", "SystemCall", "Table", "Trap", "bit", "bits", "bswap", "clz", "ctz", "function",
    "i8", "i16", "i32", "i64", "i128", "ieee_add", "ieee_convert", "ieee_div", "ieee_fma", "ieee_mul", "ieee_sqrt",
    "ieee_sub", "likely", "popcount", "sext", "u8", "u16", "u32", "u64", "u128", "unlikely",
]
