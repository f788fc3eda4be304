"""TensorFlow's numbers of dtypes, and which of them say more than numpy's dtype does.

Source: TensorFlow's types.proto; kernels of quantized and of small types, checked with TensorFlow 2.21.
"""

from collections.abc import Mapping
from typing import Final

STRING: Final = 7
VARIANT: Final = 21  # objects that only TensorFlow's code can decode

_PLAIN = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    STRING: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
    33: "float4_e2m1fn",
}
_QUANTIZED = {11: "int8", 12: "uint8", 13: "int32", 15: "int16", 16: "uint16"}  # the scale is nowhere in a checkpoint

NAMES: Final[Mapping[int, str]] = _PLAIN | _QUANTIZED
CODES: Final[Mapping[str, int]] = {name: number for number, name in _PLAIN.items()}

# One byte an element. TensorFlow ignores the high bits of these, and so says nothing about them.
LOW_BITS: Final[Mapping[str, int]] = {"int4": 0x0F, "uint4": 0x0F, "float4_e2m1fn": 0x0F, "int2": 0x03, "uint2": 0x03}
# Stored bytes of these need a look before numpy may have them: of a bool, every byte but 0 is true.
INEXACT: Final = frozenset({"bool", *LOW_BITS})
