"""Codes of a word in another order: reversed, nibbles of a byte or bytes of a word exchanged, even before odd."""

from __future__ import annotations

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Site, Unplantable, of_weights

KIND = "nibble-order"


def orders(count: int, bits: int) -> dict[str, np.ndarray]:
    """Name -> which code each place of a word (of `count` codes) gets."""
    places = np.arange(count)
    found = {"reversed": places[::-1].copy()}
    if bits == 3:
        return found  # codes cross the words: nothing shorter repeats
    found["even before odd"] = np.concatenate([places[::2], places[1::2]])
    found["halves interleaved"] = places.reshape(2, -1).T.reshape(-1)
    in_byte = 8 // bits
    if in_byte > 1:
        found["reversed in each byte"] = places.reshape(-1, in_byte)[:, ::-1].reshape(-1)
        found["bytes reversed"] = places.reshape(-1, in_byte)[::-1].reshape(-1)
    return found


def plant(site: Site) -> Fault:
    """In all columns, or in as many as the size says."""
    linear = site.linear
    count = 32 if linear.bits == 3 else 32 // linear.bits
    known = orders(count, linear.bits)
    name = str(site.rng.choice(sorted(known)))
    codes = linear.codes()
    mixed = codes.reshape(-1, count, linear.columns)[:, known[name]].reshape(codes.shape)
    at_columns = pick.columns(site) if site.size < 0.5 else np.ones(linear.columns, dtype=bool)
    damaged = np.where(at_columns[None, :], mixed, codes)
    if np.array_equal(damaged, codes):
        raise Unplantable("the codes are the same in that order")
    what = f"codes of {'three words' if linear.bits == 3 else 'a word'} {name}, {pick.words(at_columns, 'columns')}"
    return of_weights(site, KIND, what, linear.with_codes(damaged))
