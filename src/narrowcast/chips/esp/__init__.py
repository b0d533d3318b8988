"""Espressif: ESP-DL's model file, read, run, written and described, and what its versions can do."""
