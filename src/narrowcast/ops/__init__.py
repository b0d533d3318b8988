"""What an operator is, said once; and how a graph is read."""

from narrowcast.ops import functions as functions
