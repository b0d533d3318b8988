"""The exact integer graph: the very integers of the chip, in onnxruntime, at about float speed."""

from narrowcast.engine.integer.context import Proof
from narrowcast.engine.integer.files import IntegerRunner, dequantized, integer_bytes, open_integer
from narrowcast.engine.integer.lowering import IntegerGraph, lower_integer
from narrowcast.engine.integer.tables import full_table, stepped_table
from narrowcast.engine.integer.values import bias_integers, constant_integers

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
