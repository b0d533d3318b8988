"""Espressif's model file: read, run, write, describe, and what the runtime can do."""

from narrowcast.deploy.espdl.capability import FACTS, Fact, RuntimeRow, check_runtime
from narrowcast.deploy.espdl.codec import decode_espdl, encode_espdl, read_espdl
from narrowcast.deploy.espdl.file import Description, EspdlFile, EspdlNode, EspdlTensor, EspdlValue, describe
from narrowcast.deploy.espdl.kit import ESPDL_FILE, Origin, bundled_espdl, deploy_espdl
from narrowcast.deploy.espdl.restore import Restored, restore
from narrowcast.deploy.espdl.running import EspdlRunner, VectorCheck
from narrowcast.deploy.espdl.writer import TestVector, build_espdl, make_test_vectors, write_espdl

__all__ = [
    "ESPDL_FILE",
    "FACTS",
    "Description",
    "EspdlFile",
    "EspdlNode",
    "EspdlRunner",
    "EspdlTensor",
    "EspdlValue",
    "Fact",
    "Origin",
    "Restored",
    "RuntimeRow",
    "TestVector",
    "VectorCheck",
    "build_espdl",
    "bundled_espdl",
    "check_runtime",
    "decode_espdl",
    "deploy_espdl",
    "describe",
    "encode_espdl",
    "make_test_vectors",
    "read_espdl",
    "restore",
    "write_espdl",
]
