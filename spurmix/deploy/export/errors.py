"""The error of a failed export."""


class ExportError(RuntimeError):
    """The exported model's outputs differ from the PyTorch model's; the file was not written."""
