"""A safe unpickler: nothing that a pickle names is imported, nothing is called but what the reader offers.

A stack machine over pickletools' opcodes that knows numbers, texts, bytes, lists, tuples and dicts. A reader says what
the globals that it expects stand for; any other global, and any other opcode, is refused by name. Time and memory are
bounded: by the number of opcodes, by the bytes that calls make, by keys whose hash is quick.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MARK = object()
MAX_OPCODES = 2_000_000
MAX_KEY = 16  # parts of a tuple that is a key
INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
PUSHED = {*INTEGERS, *TEXTS, "FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class RefusedError(Exception):
    """The pickle does what is not done here; the text says what."""


@dataclass(frozen=True, slots=True)
class Global:
    """What a pickle names and the reader knows: "torch FloatStorage"."""

    name: str


def no_state(target: object, state: object) -> int:
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
        calls: Mapping[str, Callable[..., object]],
        set_state: Callable[[object, object], int] = no_state,
        persistent: Callable[[object], object] | None = None,
        room: int = 0,
        most: int = MAX_OPCODES,
    ) -> None:
        self.calls, self.set_state, self.persistent = calls, set_state, persistent
        self.room, self.most = room, most
        self.stack: list[object] = []
        self.memo: dict[object, object] = {}

    def run(self, program: io.BytesIO) -> object:
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
            elif name not in ("PROTO", "FRAME") and not (self._builds(name) or self._calls(name, argument)):
                raise RefusedError(f"it uses {name}")
        raise ValueError("it has no end")

    def _builds(self, name: str) -> bool:
        """Runs an opcode of constants, lists, tuples and dicts; False: it is none of these."""
        match name:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append(CONSTANTS[name])
            case "MARK":
                self.stack.append(MARK)
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._marked()
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "DICT":
                items = self._marked()
                self.stack.append({})
                self._store(items)
            case "LIST":
                self.stack.append(self._marked())
            case "TUPLE":
                self.stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._popped(int(name[-1]))))
            case "SETITEM":
                self._store(self._popped(2))
            case "SETITEMS":
                self._store(self._marked())
            case "APPEND":
                self._extend(self._popped(1))
            case "APPENDS":
                self._extend(self._marked())
            case _:
                return False
        return True

    def _calls(self, name: str, argument: object) -> bool:
        """Runs an opcode of the memo, of globals and their calls; False: it is none of these."""
        match name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self._name(str(argument))
            case "STACK_GLOBAL":
                module, global_name = self._popped(2)
                if type(global_name) is not str or type(module) is not str:
                    raise ValueError("a global without a name")  # never printed: lists in lists print for ever
                self._name(f"{module} {global_name}")
            case "REDUCE" | "NEWOBJ":
                self._call(*self._popped(2))
            case "BUILD":
                target, state = self._popped(2)
                self.stack.append(target)
                self._count(self.set_state(target, state))
            case "BINPERSID" if self.persistent is not None:
                self.stack.append(self.persistent(self.stack.pop()))
            case _:
                return False
        return True

    def _popped(self, n: int) -> list[object]:
        """The last n values, or as many as there are, taken off."""
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def _marked(self) -> list[object]:
        """What lies above the last mark, taken off with it."""
        place = len(self.stack) - 1 - next(n for n, item in enumerate(reversed(self.stack)) if item is MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _store(self, items: list[object]) -> None:
        table = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(table) is not dict or not _is_key(key):
                raise ValueError("a table with such keys")
            table[key] = value

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("no list to append to")
        target.extend(items)

    def _name(self, name: str) -> None:
        if name not in self.calls:
            raise RefusedError(f"it wants to import {name[:100].replace(' ', '.')!r}")
        self.stack.append(Global(name))

    def _call(self, called: object, arguments: object) -> None:
        if type(called) is not Global or type(arguments) is not tuple:
            raise RefusedError(f"it calls {type(called).__name__}")
        made = self.calls[called.name](*arguments)
        self._count(len(made) if isinstance(made, bytes | bytearray) else getattr(made, "n_bytes", 0))
        self.stack.append(made)

    def _count(self, made: int) -> None:
        """Takes new bytes off the room: a long text that is called for again and again would fill the memory."""
        self.room -= made
        if self.room < 0:
            raise ValueError("it makes far more bytes than it has")


def _is_key(key: object) -> bool:
    """Whether a table may have this key: its hash takes a moment, however the pickle was built."""
    if type(key) is tuple:
        return len(key) <= MAX_KEY and all(type(part) is not tuple and _is_key(part) for part in key)
    return key is None or type(key) in (str, bytes, bool, float) or (type(key) is int and key.bit_length() <= 64)
