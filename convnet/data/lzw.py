"""LZW data (GIF's and TIFF's): is it whole? Its codes are walked, and the symbols counted that they stand for.

A code of LZW has no check of its own: after damage the rest mostly stands for more or fewer symbols than the picture
has, or a code comes before it is defined. Decoders fill up or cut off; here it shows.
"""

from convnet.kernels.cpu.codes import lzw as lzw_cpu

LARGEST = 12  # bits of a code


def lzw_damage(data: bytes, n_symbols: int, bits: int = 8, *, high_first: bool = False) -> str | None:
    """What is wrong with LZW data that stands for `n_symbols` symbols of `bits` bits; None when nothing is.

    high_first: TIFF's order of bits, where codes also grow one entry early; otherwise GIF's.
    """
    count = lzw_cpu.symbols if lzw_cpu.available() else plain_symbols
    done, ended = count(data, bits, high_first, n_symbols)
    if done < 0:
        return "an LZW code that isn't defined"
    if done == n_symbols:
        return None
    if done > n_symbols:
        return "LZW codes for more than there is"
    return f"LZW codes {'end' if ended else 'break off'} after {done:,} of {n_symbols:,}"


def plain_symbols(data: bytes, bits: int, high_first: bool, most: int) -> tuple[int, bool]:
    """The symbols that the codes stand for (-1: one isn't defined), counted to just above `most`; was there an end?"""
    clear, done, before, place, n_read = 1 << bits, 0, 0, 0, 0
    lengths = [1] * clear + [0, 0]  # of what each code stands for
    while True:
        entries = clear + 2 + max(n_read - 1, 0) + high_first  # the k-th code after a clear: k - 1 entries were added
        width = min(entries.bit_length(), LARGEST)
        if place + width > 8 * len(data):
            return done, False
        code = _code(data, place, width, high_first)
        place, n_read = place + width, n_read + 1
        if code == clear:
            lengths, before, n_read = [1] * clear + [0, 0], 0, 0  # the first code after a clear adds no entry
            continue
        if code == clear + 1:
            return done, True
        if code > len(lengths) - (not before) or (code == len(lengths) and len(lengths) >= 1 << LARGEST):
            return -1, False
        if before and len(lengths) < 1 << LARGEST:
            lengths.append(before + 1)
        before = lengths[code]
        done += before
        if done > most:
            return done, False


def _code(data: bytes, place: int, width: int, high_first: bool) -> int:
    """The `width` bits from bit `place` on."""
    window = data[place >> 3 : (place >> 3) + 3].ljust(3, b"\0")
    if high_first:
        return int.from_bytes(window, "big") >> (24 - (place & 7) - width) & ((1 << width) - 1)
    return int.from_bytes(window, "little") >> (place & 7) & ((1 << width) - 1)
