"""What a host tells the kernels beside their inputs, for the runs of its thread."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_plugins import cpu


class Budget(ctypes.Structure):
    """`avl_budget` of evict.h."""

    _fields_ = (
        ("evictable", ctypes.c_void_p),
        ("tokens", ctypes.c_int64),
        ("stay", ctypes.c_int64),
        ("recent", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Host:
    """Functions of a compiled library.

    Attributes:
        offer: offers layers to refresh, and how many (refresh.h).
        want: says which logits are read (ort_logits.c).
        append: copies new rows into a cache (append.h).
        add_masses: adds up attention that cached rows received (mass.h).
        evict_text: drops text that a budget has no room for (evict.h).
        exchange: swaps active rows with parked ones (exchange.h).
        instructions: says which of the instructions that kernels are compiled for run here.
        runs_amx: says whether AMX is among them.
    """

    offer: Callable[[ctypes.Array[Any] | None, int], None]
    want: Callable[[int], None]
    append: Callable[[int, int, int, int], int]
    add_masses: Callable[[int, int, int], int]
    evict_text: Callable[[int, int, int, int, int, int, int, Budget], int]
    exchange: Callable[[int, int, int, int, int], int]
    instructions: Callable[[], str]
    runs_amx: Callable[[], bool]


def host() -> Host | None:
    """Those of the library in use; None where there is none.

    Raises:
        OSError: the library is damaged, for another machine, or of another version of avl.
    """
    return cpu.loaded(_functions)


@functools.cache
def _functions(library: Path) -> Host:
    loaded = ctypes.CDLL(str(library))
    offer, want = loaded.avl_offer, loaded.avl_want_logits
    offer.restype, offer.argtypes = None, (ctypes.c_void_p, ctypes.c_int64)
    want.restype, want.argtypes = None, (ctypes.c_int,)
    append = loaded.avl_append
    append.restype = ctypes.c_int
    append.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    told = loaded.avl_instructions
    told.restype, told.argtypes = ctypes.c_char_p, ()
    add_masses = loaded.avl_add_masses
    add_masses.restype = ctypes.c_int
    add_masses.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    evict_text = loaded.avl_evict_text
    evict_text.restype = ctypes.c_int
    evict_text.argtypes = (*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 4, ctypes.POINTER(Budget))
    exchange = loaded.avl_exchange
    exchange.restype = ctypes.c_int
    addresses, sizes = ctypes.c_void_p, ctypes.c_int64
    exchange.argtypes = (addresses, sizes, addresses, addresses, sizes)
    amx = loaded.avl_runs_amx
    amx.restype, amx.argtypes = ctypes.c_int, ()
    return Host(
        *(offer, want, append, add_masses, evict_text, exchange),
        instructions=lambda: told().decode(),
        runs_amx=lambda: bool(amx()),
    )
