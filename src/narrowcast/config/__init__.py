"""Every setting that a person can write, validated once: our own YAML and hb_mapper's."""

from narrowcast.config.convert import Converted, convert, settings_schema
from narrowcast.config.hb_back import from_settings
from narrowcast.config.hb_mapper import HbMapperConfig, is_hb_mapper, parse_hb_mapper, read_hb_mapper, write_hb_mapper
from narrowcast.config.hb_translate import to_settings
from narrowcast.config.settings import (
    QuantizeSettings,
    check_input,
    pinned_types,
    read_settings,
    read_settings_with_notes,
)

__all__ = [
    "Converted",
    "HbMapperConfig",
    "QuantizeSettings",
    "check_input",
    "convert",
    "from_settings",
    "is_hb_mapper",
    "parse_hb_mapper",
    "pinned_types",
    "read_hb_mapper",
    "read_settings",
    "read_settings_with_notes",
    "settings_schema",
    "to_settings",
    "write_hb_mapper",
]
