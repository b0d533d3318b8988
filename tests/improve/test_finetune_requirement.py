"""Finetuning without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from narrowcast.base.errors import UserError
from narrowcast.cli.tune import finetune as command


def test_without_torch_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="finetune needs torch") as caught:
        command(tmp_path, tmp_path)
    assert "pip install 'narrowcast[finetune]'" in str(caught.value)


def test_importing_the_command_does_not_import_torch() -> None:
    code = (
        "import sys, narrowcast.improve, narrowcast.improve.finetune, narrowcast.bundle.finetune\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
