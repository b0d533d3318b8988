"""What runs on the board. ``run.py`` is copied into packages beside a copy of the vision room."""
