"""What goes wrong, as moec tells it."""


class MoecError(RuntimeError):
    """An error of moec. From operators of PyTorch it may come as a plain ``RuntimeError`` with the same text.

    ``code`` is a stable name such as ``tensor-shape-mismatch`` (``moec explain CODE`` prints a page on it), ``message`` one
    sentence with found and expected, ``help`` why and what to do; it may be empty.
    """

    def __init__(self, code: str, message: str, help: str = ""):
        super().__init__(f"[{code}] {message}" + (f"\n{help}" if help else ""))
        self.code, self.message, self.help = code, message, help
