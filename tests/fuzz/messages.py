"""Messages of the contracts, made from their descriptors: right in form, wrong in any way inside.

Numbers lean to the edges of their types and to the small ones that a test's slots and tokens have;
bytes lean to int32 columns. So most messages get past the first check, and what is behind it is
tried too.
"""

from typing import Any, TypeVar

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

FUZZING = settings(max_examples=400, deadline=None)
"""`make fuzz` goes on with as many others, again and again (`tests.fuzz.rounds`)."""

_SMALL = st.integers(0, 12)
_INT32 = _SMALL | st.sampled_from([2**31 - 1, -(2**31), -1]) | st.integers(-(2**31), 2**31 - 1)
_UINT32 = _SMALL | st.sampled_from([2**32 - 1, 2**31]) | st.integers(0, 2**32 - 1)
_UINT64 = _SMALL | st.sampled_from([2**64 - 1, 2**63]) | st.integers(0, 2**64 - 1)
_COLUMNS = st.lists(_INT32, max_size=6).map(lambda values: np.array(values, "<i4").tobytes())
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_INT64: _INT32 | st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_FLOAT: st.sampled_from([0.0, 1.0, 0.5]) | st.floats(width=32),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
_LIKELY = 0.6
"""Of a field to be set at all."""


@st.composite
def messages(draw: st.DrawFn, kind: type[M], depth: int = 4) -> M:
    """A message of this kind whose fields hold anything that their types can."""
    message = kind()
    _fill(draw, message, depth)
    return message


@st.composite
def near(draw: st.DrawFn, right: M) -> M:
    """A message that differs from a right one in at most two of its fields, however deep."""
    message = type(right)()
    message.CopyFrom(right)
    for _ in range(draw(st.integers(0, 2))):
        _change(draw, message)
    return message


@st.composite
def frames(draw: st.DrawFn, kind: type[Message], *right: Message) -> bytes:
    """Bytes that are such a message, or were one before some of them were changed or cut off."""
    origin = st.one_of([messages(kind), *map(near, right)])
    data = bytearray(draw(origin).SerializeToString(deterministic=True))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([0, 0, 0, 0, 1, 7]))
    return bytes(data[: len(data) - cut]) if cut else bytes(data)


def _change(draw: st.DrawFn, message: Message) -> None:
    if not message.DESCRIPTOR.fields:
        return
    field: Any = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if is_message and not field.is_repeated and message.HasField(field.name):
        _change(draw, getattr(message, field.name))
    elif is_message and field.is_repeated and len(getattr(message, field.name)):
        _change(draw, draw(st.sampled_from(list(getattr(message, field.name)))))
    else:
        message.ClearField(field.name)
        if draw(st.booleans()):
            _set(draw, message, field, 2)


def _fill(draw: st.DrawFn, message: Message, depth: int) -> None:
    for oneof in message.DESCRIPTOR.oneofs:
        if len(oneof.fields) > 1:
            chosen: Any = draw(st.sampled_from(list(oneof.fields)))
            _set(draw, message, chosen, depth)
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    for field in fields:
        alone = field.containing_oneof is None or len(field.containing_oneof.fields) == 1
        if alone and draw(st.floats(0, 1)) < _LIKELY:
            _set(draw, message, field, depth)


def _set(draw: st.DrawFn, message: Message, field: Any, depth: int) -> None:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if depth == 0:
            return
        if not field.is_repeated:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(draw, inner, depth - 1)
            return
        for _ in range(draw(st.integers(0, 3))):
            _fill(draw, getattr(message, field.name).add(), depth - 1)
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_value(field), max_size=4)))
    else:
        setattr(message, field.name, draw(_value(field)))


def _value(field: Any) -> st.SearchStrategy[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values]) | st.just(77)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _COLUMNS | st.binary(max_size=9)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return _SCALARS[field.cpp_type]
