"""The error of a failed export, and the text of errors of other libraries."""


class ExportError(RuntimeError):
    """The model cannot be exported, or the outputs of the file differ from the model's; the file was not written."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library, or its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
