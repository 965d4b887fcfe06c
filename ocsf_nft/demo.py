"""placeholder"""


def demonstrate() -> None:
    """placeholder"""
