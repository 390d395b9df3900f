"""A machine that reads pickles and runs nothing of them.

In: the bytes of a pickle. Out: plain values, and inert stand-ins for everything else: a name of
code stays a `Name`, an instance of a class an `Opaque`. Nothing is imported or called; what the few
names of `auglocal/foreign/names.py` mean is written there. Each instruction, text and copied
element is counted, so that a pickle takes time and memory in proportion to the limits, not to what
it claims. The instructions are those of Python's pickle protocols 0 to 5 (module pickletools).
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from auglocal.foreign.names import Meanings
from auglocal.foreign.refusal import Damage
from auglocal.foreign.values import Name, Opaque, checked_key

MAX_NAME = 256  # characters of "module.name"
MAX_MARKS = 100_000  # containers begun inside one another
MAX_INTEGER = 1024  # bytes; random generators' states take 17, PyTorch's magic number 10
NAME_STEPS, STORAGE_STEPS = 4, 10  # what these take beside their instruction
SMALL = 4096  # bytes copied out of the file; longer runs stay a view of it
MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)


class Machine:
    """Reads the pickles of one buffer.

    Args:
        content: bytes.
        meanings: what names and references to storages stand for, and what is still allowed.
    """

    def __init__(self, content: memoryview, meanings: Meanings) -> None:
        self.content = content
        self.meanings = meanings
        self.budget = meanings.budget
        self.position = 0

    def load(self) -> Any:
        """Read one pickle, from where the last one ended.

        Raises:
            Refusal: it is malformed, too large, or names code.
        """
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        charge = self.budget.charge
        try:
            while True:
                charge(1)
                instruction = self.content[self.position]
                self.position += 1
                if instruction == pickle.STOP[0]:
                    return self.stack.pop()
                INSTRUCTIONS[instruction](self)
        except MALFORMED as error:
            raise Damage("its pickle is malformed") from error

    # Reading bytes

    def take(self, length: int) -> memoryview:
        """The next bytes; the file itself bounds them."""
        if not 0 <= length <= len(self.content) - self.position:
            raise Damage("its pickle ends early")
        self.position += length
        return self.content[self.position - length : self.position]

    def number(self, layout: str) -> Any:
        """The next number, in a layout of the module struct."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The text up to the end of the line; at most what a name may take."""
        start = self.position
        chunk = bytes(self.content[start : start + 2 * MAX_INTEGER + SMALL])
        end = chunk.index(b"\n")
        self.position = start + end + 1
        return chunk[:end].decode("utf-8")

    # The stack

    def push(self, value: Any) -> None:
        """Put a value on top."""
        self.stack.append(value)

    def mark(self) -> None:
        """Begin a run of values."""
        if len(self.below) >= MAX_MARKS:
            raise Damage("its pickle is nested too deeply")
        self.below.append(self.stack)
        self.stack = []

    def run(self) -> list[Any]:
        """The values since the last mark."""
        values = self.stack
        self.stack = self.below.pop()
        return values

    def pop(self) -> None:
        """Drop the top, or the mark if it is the top."""
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.below.pop()

    def store(self, index: int) -> None:
        """Remember the top."""
        self.memo[index] = self.stack[-1]

    # Values

    def text(self, length: int) -> None:
        """A text in UTF-8."""
        self.budget.charge_text(length)
        self.push(str(self.take(length), "utf-8", "surrogatepass"))

    def binary(self, length: int) -> None:
        """Bytes: copied where short."""
        taken = self.take(length)
        self.push(bytes(taken) if length <= SMALL else taken)

    def old_text(self, length: int) -> None:
        """A text of Python 2: text where it is ASCII, else bytes."""
        self.budget.charge_text(length)
        taken = bytes(self.take(length))
        self.push(taken.decode("ascii") if taken.isascii() else taken)

    def quoted(self) -> None:
        """A text of protocol 0 in quotes, without escapes."""
        text = self.line()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"" or "\\" in text:
            raise ValueError("no quoted text")
        self.push(text[1:-1])

    def line_integer(self) -> None:
        """An integer of protocol 0; 00 and 01 are False and True."""
        text = self.line()
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))

    def integer(self, length: int) -> None:
        """An integer of any length up to the bound."""
        if length > MAX_INTEGER:
            raise Damage("its pickle holds an integer of absurd length")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def append(self, values: list[Any]) -> None:
        """Add to the list on top; what is added to an instance of a class is left out."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Opaque:
            raise TypeError("no list")

    def add(self, values: list[Any]) -> None:
        """Add to the set on top."""
        target = self.stack[-1]
        if type(target) is not set:
            raise TypeError("no set")
        target.update(checked_key(value) for value in values)

    def set_items(self, values: list[Any]) -> None:
        """Add keys and values to the dictionary on top, or leave them out at an instance."""
        target = self.stack[-1]
        if len(values) % 2 or type(target) not in (dict, Opaque):
            raise TypeError("no dictionary")
        if type(target) is dict:
            for key, value in zip(values[::2], values[1::2]):
                target[checked_key(key)] = value

    def dictionary(self) -> None:
        """A dictionary of the values since the last mark."""
        values = self.run()
        self.push({})
        self.set_items(values)

    def last(self, count: int) -> tuple[Any, ...]:
        """Take the last few values off."""
        if len(self.stack) < count:
            raise IndexError("stack")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    # Names and calls

    def name(self, module: Any, name: Any) -> None:
        """Code by its name."""
        if type(module) is not str or type(name) is not str or len(module + name) > MAX_NAME:
            raise TypeError("no name")
        self.budget.charge(NAME_STEPS)
        named = Name(module, name)
        self.meanings.admit(named)
        self.push(named)

    def call(self, named: Any, arguments: Any, is_new: bool) -> None:
        """What stands for a call of a name (`is_new`: of its __new__ alone)."""
        if type(arguments) is not tuple or type(named) is not Name:
            raise TypeError("no call")
        self.push(self.meanings.call(named, arguments, is_new))

    def storage(self) -> None:
        """What a persistent identifier refers to."""
        self.budget.charge(STORAGE_STEPS)
        self.push(self.meanings.storage(self.stack.pop()))

    def reduce(self) -> None:
        """A name called with a tuple of arguments."""
        named, arguments = self.last(2)
        self.call(named, arguments, False)

    def new(self) -> None:
        """An instance of a class, made of a tuple of arguments."""
        named, arguments = self.last(2)
        self.call(named, arguments, True)

    def instance_of_line(self) -> None:
        """The old instruction INST: a name in text, arguments since the mark."""
        self.name(self.line(), self.line())
        named = self.stack.pop()
        self.call(named, tuple(self.run()), False)

    def instance_of_run(self) -> None:
        """The old instruction OBJ: a class and its arguments since the mark."""
        named, *arguments = self.run()
        self.call(named, tuple(arguments), False)

    def new_with_keywords(self) -> None:
        """A class, arguments and keywords."""
        named, arguments, keywords = self.last(3)
        if type(keywords) is not dict:
            raise TypeError("no keywords")
        self.call(named, arguments, True)

    def build(self) -> None:
        """Set the state of the instance on top."""
        target, state = self.last(2)
        self.push(self.meanings.build(target, state))


INSTRUCTIONS: dict[int, Callable[[Machine], None]] = {
    opcode[0]: action
    for opcode, action in {
        pickle.PROTO: lambda m: _discard(m.take(1)),
        pickle.FRAME: lambda m: _discard(m.take(8)),
        pickle.MARK: Machine.mark,
        pickle.POP: Machine.pop,
        pickle.POP_MARK: lambda m: _discard(m.run()),
        pickle.DUP: lambda m: m.push(m.stack[-1]),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.INT: Machine.line_integer,
        pickle.LONG: lambda m: m.push(int(m.line().removesuffix("L"))),
        pickle.FLOAT: lambda m: m.push(float(m.line())),
        pickle.BININT: lambda m: m.push(m.number("<i")),
        pickle.BININT1: lambda m: m.push(m.number("<B")),
        pickle.BININT2: lambda m: m.push(m.number("<H")),
        pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
        pickle.LONG1: lambda m: m.integer(m.number("<B")),
        pickle.LONG4: lambda m: m.integer(m.number("<i")),
        pickle.STRING: Machine.quoted,
        pickle.UNICODE: lambda m: m.push(m.line()),
        pickle.BINSTRING: lambda m: m.old_text(m.number("<i")),
        pickle.SHORT_BINSTRING: lambda m: m.old_text(m.number("<B")),
        pickle.SHORT_BINUNICODE: lambda m: m.text(m.number("<B")),
        pickle.BINUNICODE: lambda m: m.text(m.number("<I")),
        pickle.BINUNICODE8: lambda m: m.text(m.number("<Q")),
        pickle.SHORT_BINBYTES: lambda m: m.binary(m.number("<B")),
        pickle.BINBYTES: lambda m: m.binary(m.number("<I")),
        pickle.BINBYTES8: lambda m: m.binary(m.number("<Q")),
        pickle.BYTEARRAY8: lambda m: m.binary(m.number("<Q")),
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.EMPTY_LIST: lambda m: m.push([]),
        pickle.EMPTY_DICT: lambda m: m.push({}),
        pickle.EMPTY_SET: lambda m: m.push(set()),
        pickle.TUPLE: lambda m: m.push(tuple(m.run())),
        pickle.TUPLE1: lambda m: m.push(m.last(1)),
        pickle.TUPLE2: lambda m: m.push(m.last(2)),
        pickle.TUPLE3: lambda m: m.push(m.last(3)),
        pickle.LIST: lambda m: m.push(m.run()),
        pickle.DICT: Machine.dictionary,
        pickle.FROZENSET: lambda m: m.push(frozenset(checked_key(each) for each in m.run())),
        pickle.APPEND: lambda m: m.append([m.stack.pop()]),
        pickle.APPENDS: lambda m: m.append(m.run()),
        pickle.ADDITEMS: lambda m: m.add(m.run()),
        pickle.SETITEM: lambda m: m.set_items(list(m.last(2))),
        pickle.SETITEMS: lambda m: m.set_items(m.run()),
        pickle.PUT: lambda m: m.store(int(m.line())),
        pickle.BINPUT: lambda m: m.store(m.number("<B")),
        pickle.LONG_BINPUT: lambda m: m.store(m.number("<I")),
        pickle.MEMOIZE: lambda m: m.store(len(m.memo)),
        pickle.GET: lambda m: m.push(m.memo[int(m.line())]),
        pickle.BINGET: lambda m: m.push(m.memo[m.number("<B")]),
        pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
        pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
        pickle.STACK_GLOBAL: lambda m: m.name(*m.last(2)),
        pickle.REDUCE: Machine.reduce,
        pickle.NEWOBJ: Machine.new,
        pickle.NEWOBJ_EX: Machine.new_with_keywords,
        pickle.INST: Machine.instance_of_line,
        pickle.OBJ: Machine.instance_of_run,
        pickle.BUILD: Machine.build,
        pickle.BINPERSID: Machine.storage,
    }.items()
}


def _discard(value: object) -> None:
    """Read and not used."""
