"""What every room stands on: errors, files whole or not at all, the journal, progress."""
