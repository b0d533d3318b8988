"""Structure-aware fuzzing of everything that narrowcast reads: seeds, mutations, and a driver in one process."""
