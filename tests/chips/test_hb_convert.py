"""Settings files in the other form, and the schema of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from narrowcast.base.errors import UserError
from narrowcast.bundle.settings import QuantizeSettings, read_settings, settings_schema
from narrowcast.chips.rdk.hb_mapper import convert, parse_hb_mapper

OURS: dict[str, Any] = {
    "model": "net.onnx",
    "images": "cal",
    "calibration_data": "float32",
    "out": "work/net",
    "target": "bayes-e",
    "method": "percentile",
    "percentile": 99.995,
    "int16": ["soft"],
    "int16_inputs": ["soft", "add#1"],
    "float": ["head"],
    "input_name": "images",
    "size": "480x640",
    "color": "bgr",
    "layout": "NCHW",
    "mean": [1.5, 2.0, 3.0],
    "scale": [0.017],
    "camera": "nv12-studio",
}


def write(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path


def test_there_and_back(tmp_path: Path) -> None:
    theirs = convert(write(tmp_path / "narrowcast.yaml", OURS))
    assert theirs.form == "hb_mapper" and not theirs.notes
    config = parse_hb_mapper(yaml.safe_load(theirs.text))
    assert config.input_parameters.input_shape == ((1, 3, 480, 640),)
    assert config.input_parameters.input_space_and_range == ("bt601_video",)
    assert config.calibration_parameters.max_percentile == 0.99995
    (tmp_path / "hb.yaml").write_text(theirs.text)
    ours = convert(tmp_path / "hb.yaml")
    assert ours.form == "narrowcast"
    (tmp_path / "again.yaml").write_text(ours.text)
    assert read_settings(tmp_path / "again.yaml", {})[0] == read_settings(tmp_path / "narrowcast.yaml", {})[0]


def test_what_cannot_be_said_is_noted(tmp_path: Path) -> None:
    plain = {"model": "m.onnx", "images": "photos", "out": "o", "target": "bernoulli2", "limit": 3, "method": "mse"}
    result = convert(write(tmp_path / "narrowcast.yaml", plain))
    assert result.text.startswith("# ")
    for words in ("scale 1/255", "no word for limit", "stretches pictures", "no method mse", "rgb is written"):
        assert any(words in note for note in result.notes), words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "esp32p4"}, "hb_mapper does not compile for esp32p4"),
        ({"int16": ["a*"]}, "knows no patterns"),
        ({"colour": "rgb"}, "did you mean color"),
        ({"target": "bernoulli2"}, "node_info"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        convert(write(tmp_path / "narrowcast.yaml", {**OURS, **change}))


def test_operators_and_flags_survive(tmp_path: Path) -> None:
    data = {**OURS, "method": "kl", "int16_operators": ["Add"], "int8_operators": ["Softmax"], "all_int16": True}
    data |= {"outputs": "int8", "asymmetric": True, "bias_correction": True, "remove": ["Dequantize"]}
    data |= {"output_nodes": ["x"], "remove_nodes": ["y"], "percentile": 99.99}
    theirs = convert(write(tmp_path / "narrowcast.yaml", data))
    (tmp_path / "hb.yaml").write_text(theirs.text)
    again = yaml.safe_load(convert(tmp_path / "hb.yaml").text)
    assert QuantizeSettings.model_validate(again) == QuantizeSettings.model_validate(data)


def test_a_sign_in_a_name_is_no_index(tmp_path: Path) -> None:
    theirs = yaml.safe_load(convert(write(tmp_path / "narrowcast.yaml", {**OURS, "int16_inputs": ["a#b"]})).text)
    assert theirs["model_parameters"]["node_info"]["a#b"] == {"InputType": "int16"}


def test_schema_names_every_setting() -> None:
    schema = json.loads(settings_schema())
    names = {field.alias or name for name, field in QuantizeSettings.model_fields.items()}
    assert set(schema["properties"]) == names and schema["additionalProperties"] is False
    assert all(entry["description"] for entry in schema["properties"].values())
    assert "required" not in schema and "kl" in schema["properties"]["method"]["enum"]
