"""RDK boards: everything for the vendor's compiler and the board."""

from narrowcast.deploy.rdk.heads import Exported, ExportedOutput, export, verify
from narrowcast.deploy.rdk.opset import IR_VERSION, OPSET, to_opset_11
from narrowcast.deploy.rdk.package import deploy_rdk
from narrowcast.deploy.rdk.settings import decisions, hb_settings

__all__ = [
    "IR_VERSION",
    "OPSET",
    "Exported",
    "ExportedOutput",
    "decisions",
    "deploy_rdk",
    "export",
    "hb_settings",
    "to_opset_11",
    "verify",
]
