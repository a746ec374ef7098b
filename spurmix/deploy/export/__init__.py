"""ONNX export. The exported file is compared with the PyTorch model, per group, before it is put in place."""

from spurmix.deploy.export.compare import ExportReport
from spurmix.deploy.export.errors import ExportError
from spurmix.deploy.export.onnx_export import export_onnx

__all__ = ["ExportError", "ExportReport", "export_onnx"]
