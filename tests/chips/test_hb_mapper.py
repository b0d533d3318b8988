"""hb_mapper's YAML: every key, both spellings, every contradiction in one line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from narrowcast.base.errors import UserError
from narrowcast.bundle.settings import (
    QuantizeSettings,
    check_input,
    pinned_types,
    read_settings,
)  # fmt: skip
from narrowcast.chips.rdk.hb_mapper import (
    GROUPS,
    HbMapperConfig,
    parse_hb_mapper,
    to_values,
    write_hb_mapper,
)  # fmt: skip
from narrowcast.chips.rdk.hb_settings import UNSAID

SOFTMAX = "/model.10/m/m.0/attn/Softmax"
BASE: dict[str, dict[str, Any]] = {
    "model_parameters": {"onnx_model": "./net.onnx", "march": "bayes-e", "working_dir": "work"},
    "input_parameters": {
        "input_name": "",
        "input_type_rt": "nv12",
        "input_type_train": "rgb",
        "input_layout_train": "NCHW",
        "norm_type": "data_scale",
        "scale_value": 0.003921568627451,
    },
    "calibration_parameters": {"cal_data_dir": "./cal_f32", "cal_data_type": "float32"},
    "compiler_parameters": {"compile_mode": "latency", "debug": False, "optimize_level": "O3"},
}
TWO_INPUTS = {
    "input_name": "left;right",
    "input_type_rt": "nv12;featuremap",
    "input_type_train": "bgr;featuremap",
    "input_layout_train": "NCHW;NCHW",
    "input_shape": "1x3x64x64;1x8x4x4",
    "norm_type": "data_mean_and_scale;no_preprocess",
    "mean_value": "103.94 116.78 123.68;None",
    "scale_value": "0.017;None",
}


def changed(**groups: dict[str, Any]) -> dict[str, Any]:
    """The base with keys replaced; ``None`` removes one."""
    data = copy.deepcopy(BASE)
    for group, keys in groups.items():
        data.setdefault(group, {}).update(keys)
        data[group] = {key: value for key, value in data[group].items() if value is not None}
    return data


def model(**keys: Any) -> dict[str, Any]:
    return changed(model_parameters=keys)


def entry(**keys: Any) -> dict[str, Any]:
    return changed(input_parameters=keys)


def calibration(**keys: Any) -> dict[str, Any]:
    return changed(calibration_parameters=keys)


def compiler(**keys: Any) -> dict[str, Any]:
    return changed(compiler_parameters=keys)


def to_settings(config: HbMapperConfig, folder: Path) -> tuple[QuantizeSettings, tuple[str, ...]]:
    values, notes = to_values(config, folder)
    return QuantizeSettings.model_validate(values), notes


def settings_of(data: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    settings, notes = to_settings(parse_hb_mapper(data), Path("folder"))
    return settings.model_dump(exclude_defaults=True, by_alias=True), notes


def test_the_plain_file() -> None:
    values, notes = settings_of(BASE)
    assert values == {
        "model": Path("folder/net.onnx"),
        "images": Path("folder/cal_f32"),
        "calibration_data": "float32",
        "out": Path("folder/work/model"),
        "target": "bayes-e",
        "search": "hb-mapper",
        "mean": (0.0,),
        "scale": (0.003921568627451,),
        "color": "rgb",
        "layout": "NCHW",
        "camera": "nv12-full",
    }
    assert any("input_space_and_range" in note for note in notes)
    assert any("compile_mode, optimize_level, debug" in note for note in notes)


def test_lists_channels_and_shapes() -> None:
    config = parse_hb_mapper(
        changed(input_parameters=TWO_INPUTS, calibration_parameters={"cal_data_dir": "a;b", "cal_data_type": None})
    )
    entries = config.input_parameters
    assert entries.mean_value == ((103.94, 116.78, 123.68), None) and entries.scale_value == ((0.017,), None)
    assert entries.input_shape == ((1, 3, 64, 64), (1, 8, 4, 4)) and config.count == 2
    with pytest.raises(UserError, match=r"2 inputs \(left, right\).*narrowcast takes one"):
        to_settings(config, Path())


def test_node_info_in_both_spellings() -> None:
    table = {
        SOFTMAX: {"ON": "BPU", "InputType": "int16", "OutputType": "int16"},
        "head": {"ON": "CPU"},
        "add": {"InputType1": "int16"},
        "max": {"ON": "BPU"},
    }
    values, _ = settings_of(model(node_info=table))
    assert values["int16"] == (SOFTMAX,) and values["float"] == ("head",) and values["int8"] == ("max",)
    assert values["int16_inputs"] == (SOFTMAX, "add#1")
    config = parse_hb_mapper(model(node_info="a:b:int16; c:int8;"))
    assert config.model_parameters.node_info == {"a:b": {"OutputType": "int16"}, "c": {"OutputType": "int8"}}
    assert settings_of(model(set_node_data_type="a:int16"))[0]["int16"] == ("a",)


def test_units_by_the_old_keys() -> None:
    values, _ = settings_of(calibration(run_on_cpu="a; b", run_on_bpu="c"))
    assert values["float"] == ("a", "b") and values["int8"] == ("c",)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"calibration_type": "kl"}, {"method": "kl"}),
        ({"calibration_type": "max"}, {"method": "minmax"}),
        ({"calibration_type": "max", "max_percentile": 0.9999}, {"method": "percentile"}),
        ({"calibration_type": "max", "max_percentile": "0.99995"}, {"method": "percentile", "percentile": 99.995}),
        ({"calibration_type": "default"}, {"search": "hb-mapper"}),
        ({"calibration_type": "mix", "per_channel": True}, {}),
        ({"calibration_type": "kl", "optimization": "asymmetric"}, {"method": "kl", "asymmetric": True}),
        ({"optimization": "asymmetric"}, {"search": "hb-mapper"}),
    ],
)
def test_calibration_types(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    values, _ = settings_of(calibration(**keys))
    known = ("method", "percentile", "search", "asymmetric")
    assert {key: value for key, value in values.items() if key in known} == expected


def test_optimization_entries() -> None:
    text = (
        "set_Softmax_input_int8,set_Softmax_output_int8, set_MatMul_output_int16,set_model_output_int16,bias_correction"
    )
    values, _ = settings_of(calibration(optimization=text))
    assert values["int8_operators"] == ("Softmax",) and values["int16_operators"] == ("MatMul",)
    assert values["outputs"] == "int16" and values["bias_correction"]
    assert settings_of(calibration(optimization="set_all_nodes_int16"))[0]["all_int16"]
    assert any("lstm_batch_last" in note for note in settings_of(calibration(optimization="lstm_batch_last"))[1])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"input_space_and_range": "bt601_video"}, {"camera": "nv12-studio", "color": "rgb"}),
        ({"input_type_rt": "yuv444", "input_type_train": "bgr"}, {"camera": "rgb", "color": "bgr"}),
        ({"input_type_rt": "rgb", "input_layout_rt": "NHWC"}, {"camera": "rgb", "color": "rgb"}),
        ({"input_type_rt": "gray", "input_type_train": "gray"}, {"camera": "rgb", "color": "gray"}),
        (
            {"input_type_rt": "featuremap", "input_type_train": "featuremap", "norm_type": "no_preprocess"},
            {"scale": (1.0,)},
        ),
        ({"norm_type": "data_mean", "mean_value": "1 2 3"}, {"mean": (1.0, 2.0, 3.0), "scale": (1.0,)}),
        ({"input_shape": "1x3x480x640"}, {"size": "480x640"}),
        ({"input_layout_train": "NHWC", "input_shape": "1x48x64x3"}, {"size": "48x64", "layout": "NHWC"}),
    ],
)
def test_inputs(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    values, _ = settings_of(entry(**keys))
    assert expected.items() <= values.items()
    assert ("camera" in values) == (keys.get("input_type_train") != "featuremap")


def test_unused_numbers_are_said() -> None:
    _, notes = settings_of(entry(mean_value="123 117 104"))
    assert "mean_value is not used, because norm_type is data_scale" in notes
    assert not any("mean_value" in note for note in settings_of(entry(mean_value=0))[1])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (entry(norm_typ="x"), "norm_typ is no key of hb_mapper: did you mean norm_type"),
        (model(norm_type="data_mean"), "it belongs below input_parameters"),
        ({**BASE, "compiler_params": {}}, "did you mean compiler_parameters"),
        ({**BASE, "march": "bayes"}, "it belongs below model_parameters"),
        ({key: BASE[key] for key in list(BASE)[:3]}, "the group compiler_parameters is missing"),
        ({**BASE, "input_parameters": "a"}, "input_parameters is no table"),
        (entry(input_type_rt=None), "the key input_parameters.input_type_rt is missing"),
        (model(march=None), "model_parameters.march is missing"),
        (model(march="Bernoulli2"), "march: 'Bernoulli2' is unknown: did you mean bernoulli2"),
        (model(march="bayes2"), "write that of your board: bernoulli2 = X3, bayes = Ultra, bayes-e = X5"),
        (entry(scale_value="1/255"), "scale_value: '1/255' is no number: write '0.003921568627451'"),
        (entry(scale_value="one"), "scale_value: 'one' is no number: write '0.003921568627451'"),
        (entry(mean_value="one"), "mean_value: 'one' is no number: write '123.675 116.28 103.53'"),
        (model(march="nash-e"), "nash-e is compiled by hb_compile"),
        (model(onnx_model=None), "onnx_model: is missing"),
        (model(prototxt="a", caffe_model="b"), "a Caffe and an ONNX model"),
        (model(onnx_model=None, caffe_model="b"), "a Caffe model has two files"),
        (model(output_nodes=";".join(f"n{i}" for i in range(33))), "output_nodes"),
        (model(remove_node_type="Dequantise"), "did you mean Dequantize"),
        (model(node_info={"a": {"ON": "GPU"}}), "node_info: 'GPU' is not possible"),
        (model(node_info={"a": {"OutputType0": "int16"}}), "OutputType applies to all outputs"),
        (model(node_info={"a": {"Outputtype": "int16"}}), "did you mean OutputType"),
        (model(node_info={"a": {True: "BPU"}}), "write 'ON' in quotes"),
        (model(node_info={"a": {"ON": "CPU", "OutputType": "int16"}}), "on the CPU and has integer types"),
        (model(node_info="a=int16"), "write 'node:int16"),
        (model(set_node_data_type={"a": "int4"}), "set_node_data_type: 'int4' is not possible"),
        (model(march="bernoulli2", node_info={"a": {"ON": "CPU"}}), "node_info: is not for bernoulli2"),
        (model(layer_out_dump="maybe"), "model_parameters.layer_out_dump"),
        (entry(input_type_train="rbg"), "input_type_train: 'rbg' is not possible: did you mean rgb"),
        (entry(input_type_rt="gray"), "rgb cannot be fed as gray"),
        (entry(input_type_rt="rgb"), "input_layout_rt: is missing; rgb needs it"),
        (entry(input_type_rt="yuv444", input_space_and_range="bt601_video"), "bt601_video is for nv12"),
        (entry(input_shape="1x3x63x64"), "nv12 needs even sides, not 63x64"),
        (entry(input_shape="1x64x64x3"), "has 64 channels in NCHW, rgb has 3"),
        (entry(input_shape="1x3x64"), "3 axes for nv12"),
        (entry(input_shape="640*640"), "is no shape"),
        (entry(scale_value="0.1 0.2"), "scale_value: 2 values for 3 channels of rgb"),
        (entry(scale_value="0.1, 0.2, 0.3"), "separate channels by spaces"),
        (entry(scale_value=[0.1, 0.2, 0.3]), "is not of the form that hb_mapper reads"),
        (entry(scale_value="nan"), "no finite number"),
        (entry(scale_value=None), "scale_value: norm_type data_scale needs it"),
        (entry(input_type_rt="nv12;nv12"), "2 inputs are described, none is named"),
        (entry(input_name="a;b"), "1 value for 2 inputs"),
        (entry(input_name="a;a"), "names a twice"),
        (entry(input_batch=5000), "input_batch"),
        (entry(input_batch=4, input_shape="2x3x64x64"), "input_batch: is for one input"),
        (calibration(cal_data_dir=None), "cal_data_dir: is missing"),
        (calibration(cal_data_dir="a;b"), "2 folders for 1 input"),
        (calibration(cal_data_type="float16"), "cal_data_type: 'float16' is not possible"),
        (calibration(calibration_type="KL"), "did you mean kl"),
        (calibration(max_percentile=1.5), "max_percentile"),
        (calibration(optimization="set_softmax_input_int8"), "ONNX names begin with a capital"),
        (calibration(optimization="set_all_node_int16"), "did you mean set_all_nodes_int16"),
        (calibration(optimization="set_Add_output_int8,set_Add_output_int16"), "cannot be int8 and int16"),
        (calibration(optimization="set_model_output_int8,set_model_output_int16"), "outputs cannot be"),
        (calibration(run_on_cpu="a", run_on_bpu="a"), "a is sent to the CPU elsewhere"),
        (compiler(core_num=2), "bayes-e has 1 core"),
        (compiler(compile_mode="balance"), "balance_factor: goes with compile_mode balance"),
        (compiler(max_time_per_fc=10), "max_time_per_fc: is 0 or at least 1000"),
        (compiler(optimize_level="O4"), "optimize_level: 'O4' is not possible"),
        (compiler(input_source={"images": "camera"}), "input_source: 'camera' is not possible"),
        (
            changed(input_parameters={"input_name": "images"}, compiler_parameters={"input_source": {"image": "ddr"}}),
            "no input is named image: did you mean images",
        ),
        (
            changed(
                input_parameters={"input_type_rt": "rgb", "input_layout_rt": "NHWC"},
                compiler_parameters={"input_source": {"images": "pyramid"}},
            ),
            "pyramid delivers nv12 or gray, not rgb",
        ),
    ],
)
def test_one_line_for_every_mistake(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        parse_hb_mapper(data, "net.yaml")
    text = str(error.value)
    assert words in text and text.startswith("net.yaml: ") and "\n" not in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (model(onnx_model=None, prototxt="a", caffe_model="b"), "narrowcast reads ONNX"),
        ({**BASE, "custom_op": {"custom_op_method": "register"}}, "cannot run operators"),
        (calibration(calibration_type="load"), "load takes ranges out of the model"),
        (calibration(calibration_type="skip", cal_data_dir=None), "random numbers"),
        (calibration(calibration_type="kl", per_channel=True), "an activation has one scale"),
        (calibration(optimization="run_fast"), "run_fast is not for bayes-e"),
        (entry(input_type_train="yuv444"), "yuv444 are not supported"),
    ],
)
def test_refused_with_a_reason(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        to_settings(parse_hb_mapper(data), Path())


EVERYTHING = changed(
    model_parameters={
        "node_info": {SOFTMAX: {"ON": "BPU", "InputType": "int16", "InputType1": "int8", "OutputType": "int16"}},
        "output_nodes": "a;b",
        "remove_node_type": "Dequantize;Transpose",
        "remove_node_name": "c",
        "set_node_data_type": "d:int16",
        "debug_mode": "dump_calibration_data",
    },
    input_parameters=TWO_INPUTS,
    calibration_parameters={"cal_data_dir": "a;b", "optimization": "asymmetric,bias_correction", "run_on_cpu": "e"},
    compiler_parameters={"input_source": {"left": "pyramid"}, "jobs": 4, "advice": 1, "max_time_per_fc": 2000},
    custom_op={"custom_op_method": "register", "op_register_files": "a.py;b.py", "custom_op_dir": "ops"},
)


@pytest.mark.parametrize("data", [BASE, EVERYTHING, model(march="bernoulli2"), entry(mean_value=1)])
def test_written_and_read_again(data: dict[str, Any]) -> None:
    config = parse_hb_mapper(data)
    assert parse_hb_mapper(yaml.safe_load(write_hb_mapper(config))) == config
    assert isinstance(config, HbMapperConfig)


def test_empty_values_are_defaults() -> None:
    data = changed(input_parameters={"input_shape": "", "mean_value": ""})
    data["model_parameters"]["node_info"] = {}
    data["calibration_parameters"]["calibration_type"] = None
    assert parse_hb_mapper(data).calibration_parameters.calibration_type == "default"


def write(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path


def test_quantize_recognises_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "hb.yaml", BASE)
    settings, notes = read_settings(file, {"out": Path("o"), "method": "kl"})
    assert settings.model == tmp_path / "net.onnx" and settings.out == Path("o") and settings.method == "kl"
    assert settings.calibration_data == "float32" and notes
    assert read_settings(file, {"images": Path("photos")})[0].calibration_data == "images"
    assert settings.target == "bayes-e"


def test_skip_takes_images_from_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "hb.yaml", calibration(calibration_type="skip", cal_data_dir=None, cal_data_type=None))
    assert read_settings(file, {"images": Path("photos")})[0].images == Path("photos")
    with pytest.raises(UserError, match="add --images"):
        read_settings(file, {})


def test_types_by_folder_name_and_pictures() -> None:
    assert settings_of(calibration(cal_data_type=None))[0]["calibration_data"] == "float32"
    assert settings_of(calibration(cal_data_type=None, cal_data_dir="raw"))[0]["calibration_data"] == "uint8"
    pictures = settings_of(calibration(preprocess_on=True))[0]
    assert "calibration_data" not in pictures and pictures["resize"] == "stretch"


def test_keys_given_twice(tmp_path: Path) -> None:
    file = tmp_path / "hb.yaml"
    file.write_text(yaml.safe_dump(BASE) + "compiler_parameters:\n  jobs: 2\n")
    with pytest.raises(UserError, match="compiler_parameters is given twice"):
        read_settings(file, {})
    info = "  node_info:\n" + 2 * "    '/a/Softmax': {'ON': 'BPU', 'OutputType': 'int16'}\n"
    file.write_text(yaml.safe_dump(BASE).replace("model_parameters:\n", f"model_parameters:\n{info}"))
    settings, notes = read_settings(file, {})
    assert settings.int16 == ("/a/Softmax",)
    assert any("/a/Softmax is given twice, again in line" in note and "the same value" in note for note in notes)
    file.write_text(file.read_text().replace("'int16'}", "'int8'}", 1))
    with pytest.raises(UserError, match=r"given twice, again in line .* with another value"):
        read_settings(file, {})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_that_say_their_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "hb.yaml"
    file.write_text("# \u6a21\u578b\n" + yaml.safe_dump(BASE), encoding=encoding)
    assert read_settings(file, {})[0].target == "bayes-e"


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "hb.yaml"
    file.write_text("a: 1\n# \u6a21\u578b\n", encoding="gbk")
    with pytest.raises(UserError, match=r"not written in UTF-8 \(line 2\): save it as UTF-8"):
        read_settings(file, {})


def test_keys_of_older_versions(tmp_path: Path) -> None:
    _, notes = read_settings(write(tmp_path / "hb.yaml", model(log_level="debug")), {})
    assert any("log_level is a key of older versions" in note for note in notes)


def test_what_quantize_cannot_do_is_refused(tmp_path: Path) -> None:
    for data, words in ((calibration(optimization="set_model_output_int8"), "outputs is understood"),):
        with pytest.raises(UserError, match=words):
            read_settings(write(tmp_path / "hb.yaml", data), {})
    assert read_settings(write(tmp_path / "hb.yaml", model(remove_node_type="Dequantize")), {})[0].remove == (
        "Dequantize",
    )


NODES = [("mul", "Mul", ["a", ""]), ("soft", "Softmax", ["b"]), ("add", "Add", ["b", "c"])]


def test_pinned_types(tmp_path: Path) -> None:
    data = changed(
        model_parameters={"node_info": {"soft": {"InputType": "int16"}, "add": {"InputType1": "int16", "ON": "CPU"}}},
        calibration_parameters={"optimization": "set_Softmax_output_int16,set_Add_output_int8"},
    )
    del data["model_parameters"]["node_info"]["add"]["ON"]
    settings = read_settings(write(tmp_path / "hb.yaml", data), {"float": ("mul",)})[0]
    assert pinned_types(settings, NODES) == (
        {"add": "int8", "soft": "int16", "mul": "float32"},
        {"b": "int16", "c": "int16"},
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"int16_operators": ("Softmx",)}, "no node of this model is a Softmx: did you mean Softmax"),
        ({"int16_inputs": ("sofd",)}, "no node of this model is named sofd: did you mean soft"),
        ({"int16_inputs": ("mul#1",)}, "mul has no computed input 1"),
    ],
)
def test_pins_of_nothing(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    settings = read_settings(write(tmp_path / "hb.yaml", BASE), change)[0]
    with pytest.raises(UserError, match=words):
        pinned_types(settings, NODES)


def test_the_input_is_compared_with_the_model() -> None:
    settings, _ = to_settings(parse_hb_mapper(entry(input_name="x", input_shape="1x3x48x64")), Path())
    check_input(settings, "x", (1, 3, 48, 64))
    for name, shape, words in (
        ("images", (1, 3, 48, 64), "the model's is images"),
        ("x", (1, 48, 64, 3), "say NCHW"),
        ("x", (1, 3, 64, 48), "say 48x64 pixels"),
    ):
        with pytest.raises(UserError, match=words):
            check_input(settings, name, shape)


def test_every_key_is_one_row_and_every_setting_has_a_key_or_none() -> None:
    keys = [key for rows in GROUPS.values() for key in rows.model_fields]
    assert len(keys) == len(set(keys)), "near misses name the one group of a key"
    every = changed(
        model_parameters={
            "node_info": {
                "a": {"ON": "CPU"}, "b": {"InputType": "int16"}, "c": {"OutputType": "int16"}, "d": {"ON": "BPU"},
            },
            "output_nodes": "a", "remove_node_type": "Cast", "remove_node_name": "c",
        },
        input_parameters={"input_name": "x", "input_shape": "1x3x4x4"},
        calibration_parameters={
            "calibration_type": "max", "max_percentile": 0.999,
            "optimization": "asymmetric,bias_correction,set_all_nodes_int16,set_model_output_int8,set_A_output_int8,"
            "set_B_output_int16",
        },
    )  # fmt: skip
    told = set(to_values(parse_hb_mapper(every), Path(), "f.yaml")[0]) | {
        "resize",
        "search",
    }  # of preprocess_on, default
    assert told.isdisjoint(UNSAID)
    names = {field.alias or name for name, field in QuantizeSettings.model_fields.items()}
    assert told | set(UNSAID) == names
