"""The exact integer graph: the very integers of the chip, in onnxruntime, at about float speed."""

from narrowcast.lower.integer.context import Proof
from narrowcast.lower.integer.files import IntegerRunner, dequantized, integer_bytes, open_integer
from narrowcast.lower.integer.lowering import IntegerGraph, lower_integer
from narrowcast.lower.integer.tables import full_table, stepped_table
from narrowcast.lower.integer.values import bias_integers, constant_integers

__all__ = [
    "IntegerGraph",
    "IntegerRunner",
    "Proof",
    "bias_integers",
    "constant_integers",
    "dequantized",
    "full_table",
    "integer_bytes",
    "lower_integer",
    "open_integer",
    "stepped_table",
]
