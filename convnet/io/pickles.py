"""What does a pickle say? Read as data: nothing it names is imported, nothing is called but what the reader offers.

A stack machine over pickletools' opcodes that knows numbers, texts, bytes, lists, tuples and dicts. A reader says what
the globals that it expects stand for; any other global, and any other opcode, is refused by name. Time and memory are
bounded: by the number of opcodes, by the bytes that calls make, by keys whose hash is quick.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MARK = object()
MAX_OPCODES = 2_000_000
MAX_KEY = 16  # parts of a tuple that is a key
PUSHED = frozenset(
    (
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    )
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class RefusedError(Exception):
    """The pickle does what is not done here; the text says what."""


@dataclass(frozen=True, slots=True)
class Global:
    """What a pickle names and the reader knows: "torch FloatStorage"."""

    name: str


def no_state(target: Any, state: Any) -> int:
    """For readers of pickles in which nothing has a state to be set."""
    raise RefusedError(f"it sets the state of {type(target).__name__}")


class Machine:
    """The stack and the memo of one pickle.

    calls       {global: what its call makes of the arguments}
    set_state   is given a value and its new state; returns how many bytes it made
    persistent  what stands for a persistent id; None: there are none
    room        bytes that calls may make in all
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[..., Any]],
        set_state: Callable[[Any, Any], int] = no_state,
        persistent: Callable[[Any], Any] | None = None,
        room: int = 0,
        most: int = MAX_OPCODES,
    ) -> None:
        self.calls, self.set_state, self.persistent = calls, set_state, persistent
        self.room, self.most = room, most
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: io.BytesIO) -> Any:
        """The value of the pickle at the stream's place, which is behind it then.

        Raises: RefusedError; for a damaged pickle whatever it stumbles over, as ValueError, IndexError, KeyError.
        """
        for n, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            name = opcode.name
            if n >= self.most:
                raise RefusedError(f"it has more than {self.most:,} steps")
            if name == "STOP":
                return self.stack[-1]
            if name in PUSHED:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in ("PROTO", "FRAME"):
                continue
            elif (act := getattr(self, f"on_{name.lower()}", None)) is not None:
                act(argument)
            else:
                raise RefusedError(f"it uses {name}")
        raise ValueError("it has no end")

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken off with it."""
        place = len(self.stack) - 1 - next(n for n, item in enumerate(reversed(self.stack)) if item is MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def on_mark(self, _: Any) -> None:
        self.stack.append(MARK)

    def on_pop(self, _: Any) -> None:
        self.stack.pop()

    def on_pop_mark(self, _: Any) -> None:
        self.marked()

    def on_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def on_dict(self, _: Any) -> None:
        items = self.marked()
        self.stack.append({})
        self.store(items)

    def on_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.store([key, value])

    def on_setitems(self, _: Any) -> None:
        self.store(self.marked())

    def store(self, items: list[Any]) -> None:
        table = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(table) is not dict or not _is_key(key):
                raise ValueError("a table with such keys")
            table[key] = value

    def on_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def on_list(self, _: Any) -> None:
        self.stack.append(self.marked())

    def on_append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def on_appends(self, _: Any) -> None:
        self.extend(self.marked())

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("no list to append to")
        self.stack[-1].extend(items)

    def on_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def on_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.marked()))

    def on_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def on_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def on_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def on_put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    on_binget = on_long_binget = on_get

    def on_global(self, name: str) -> None:
        if name not in self.calls:
            raise RefusedError(f"it wants to import {name[:100].replace(' ', '.')!r}")
        self.stack.append(Global(name))

    def on_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a global without a name")  # never printed: lists in lists print for ever
        self.on_global(f"{module} {name}")

    def on_reduce(self, _: Any) -> None:
        given, called = self.stack.pop(), self.stack.pop()
        if type(called) is not Global or type(given) is not tuple:
            raise RefusedError(f"it calls {type(called).__name__}")
        made = self.calls[called.name](*given)
        self.count(len(made) if isinstance(made, bytes | bytearray) else getattr(made, "n_bytes", 0))
        self.stack.append(made)

    on_newobj = on_reduce

    def on_build(self, _: Any) -> None:
        state = self.stack.pop()
        self.count(self.set_state(self.stack[-1], state))

    def count(self, made: int) -> None:
        """Takes new bytes off the room: a long text that is called for again and again would fill the memory."""
        self.room -= made
        if self.room < 0:
            raise ValueError("it makes far more bytes than it has")

    def on_binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise RefusedError("it uses BINPERSID")
        self.stack.append(self.persistent(self.stack.pop()))


def _is_key(key: Any) -> bool:
    """Whether a table may have this key: its hash takes a moment, however the pickle was built."""
    if type(key) is tuple:
        return len(key) <= MAX_KEY and all(type(part) is not tuple and _is_key(part) for part in key)
    return key is None or type(key) in (str, bytes, bool, float) or (type(key) is int and key.bit_length() <= 64)
