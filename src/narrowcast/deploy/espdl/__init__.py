"""Espressif's model file: read, run, write, describe, and what the runtime can do."""

from narrowcast.deploy.espdl.codec import decode_espdl, encode_espdl, read_espdl
from narrowcast.deploy.espdl.file import Description, EspdlFile, EspdlNode, EspdlTensor, EspdlValue, describe
from narrowcast.deploy.espdl.kit import ESPDL_FILE, Origin, bundled_espdl, deploy_espdl, parser_names, parser_notes
from narrowcast.deploy.espdl.model import (
    EspdlRunner,
    Restored,
    TestVector,
    VectorCheck,
    build_espdl,
    make_test_vectors,
    restore,
)
from narrowcast.deploy.espdl.runtime import RuntimeRow, check_runtime

__all__ = [
    "ESPDL_FILE",
    "Description",
    "EspdlFile",
    "EspdlNode",
    "EspdlRunner",
    "EspdlTensor",
    "EspdlValue",
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
    "parser_names",
    "parser_notes",
    "read_espdl",
    "restore",
]
