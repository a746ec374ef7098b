"""Reference implementation of every operator in PyTorch, the normative arithmetic. It runs without compiled kernels.

The functions take the arguments of the schemas in `schema.py` and assume valid types and shapes. They check indices and
class ids, because these are data. Tests compare the other backends with these functions.
"""
