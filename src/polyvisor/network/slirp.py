"""libslirp's C interface (libslirp.h, configuration version 1, which all of its releases have)."""

from __future__ import annotations

import ctypes
import ctypes.util
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_uint8, c_uint32, c_void_p
from functools import cache
from typing import Any

POLL_IN = 1
POLL_OUT = 2
POLL_PRI = 4
POLL_ERR = 8
POLL_HUP = 16

NO_TIMEOUT = 0xFFFFFFFF

_NAMES = ("libslirp.so.0", "libslirp.0.dylib", "libslirp-0.dll")

SEND_PACKET = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_size_t, c_void_p)
GUEST_ERROR = ctypes.CFUNCTYPE(None, c_char_p, c_void_p)
CLOCK = ctypes.CFUNCTYPE(c_int64, c_void_p)
TIMER_NEW = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p)
TIMER_FREE = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
TIMER_MOD = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_void_p)
POLL_FD = ctypes.CFUNCTYPE(None, c_int, c_void_p)
NOTIFY = ctypes.CFUNCTYPE(None, c_void_p)
ADD_POLL = ctypes.CFUNCTYPE(c_int, c_int, c_int, c_void_p)
GET_REVENTS = ctypes.CFUNCTYPE(c_int, c_int, c_void_p)
TIMER_EXPIRED = ctypes.CFUNCTYPE(None, c_void_p)


class Callbacks(ctypes.Structure):
    """SlirpCb, up to version 3."""

    _fields_ = (
        ("send_packet", SEND_PACKET),
        ("guest_error", GUEST_ERROR),
        ("clock_get_ns", CLOCK),
        ("timer_new", TIMER_NEW),
        ("timer_free", TIMER_FREE),
        ("timer_mod", TIMER_MOD),
        ("register_poll_fd", POLL_FD),
        ("unregister_poll_fd", POLL_FD),
        ("notify", NOTIFY),
    )


class InAddr(ctypes.Structure):
    """struct in_addr: an address in network order."""

    _fields_ = (("word", c_uint32),)


class In6Addr(ctypes.Structure):
    """struct in6_addr, with the alignment that it has in C."""

    _fields_ = (("words", c_uint32 * 4),)


class Config(ctypes.Structure):
    """SlirpConfig, version 1."""

    _fields_ = (
        ("version", c_uint32),
        ("restricted", c_int),
        ("in_enabled", c_bool),
        ("vnetwork", InAddr),
        ("vnetmask", InAddr),
        ("vhost", InAddr),
        ("in6_enabled", c_bool),
        ("vprefix_addr6", In6Addr),
        ("vprefix_len", c_uint8),
        ("vhost6", In6Addr),
        ("vhostname", c_char_p),
        ("tftp_server_name", c_char_p),
        ("tftp_path", c_char_p),
        ("bootfile", c_char_p),
        ("vdhcp_start", InAddr),
        ("vnameserver", InAddr),
        ("vnameserver6", In6Addr),
        ("vdnssearch", c_void_p),
        ("vdomainname", c_char_p),
        ("if_mtu", c_size_t),
        ("if_mru", c_size_t),
        ("disable_host_loopback", c_bool),
        ("enable_emu", c_bool),
    )


class SlirpMissingError(OSError):
    """libslirp is not installed; the message is one line for the user."""


@cache
def library() -> Any:
    """The library, with the types of its functions. Raises SlirpMissingError."""
    found = None
    for name in (*_NAMES, ctypes.util.find_library("slirp")):
        if name is None:
            continue
        try:
            found = ctypes.CDLL(name)
            break
        except OSError:
            continue
    if found is None:
        raise SlirpMissingError(
            "the user-mode network needs libslirp: install libslirp0 (Debian, Ubuntu) or libslirp (others)"
        )
    for function, result, arguments in (
        ("slirp_new", c_void_p, (ctypes.POINTER(Config), ctypes.POINTER(Callbacks), c_void_p)),
        ("slirp_cleanup", None, (c_void_p,)),
        ("slirp_pollfds_fill", None, (c_void_p, ctypes.POINTER(c_uint32), ADD_POLL, c_void_p)),
        ("slirp_pollfds_poll", None, (c_void_p, c_int, GET_REVENTS, c_void_p)),
        ("slirp_input", None, (c_void_p, c_char_p, c_int)),
        ("slirp_add_hostfwd", c_int, (c_void_p, c_int, InAddr, c_int, InAddr, c_int)),
        ("slirp_remove_hostfwd", c_int, (c_void_p, c_int, InAddr, c_int)),
        ("slirp_version_string", c_char_p, ()),
    ):
        getattr(found, function).restype = result
        getattr(found, function).argtypes = arguments
    return found
