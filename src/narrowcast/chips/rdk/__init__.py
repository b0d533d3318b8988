"""Horizon and D-Robotics: hb_mapper, its settings file, and the RDK boards."""
