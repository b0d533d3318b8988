"""What an operator is, said once; and how a graph is read."""
