"""What a user of training, evaluation and export can get wrong."""


class BadInput(ValueError):
    """One sentence that names what is wrong, its value and the way out; commands print it and exit with 2."""
