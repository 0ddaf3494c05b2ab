"""The three kinds of failure the core knows; adapters translate their client's errors into them."""


class UserError(Exception):
    """A mistake of the person at the keyboard: one sentence that names the way out; exit code 2."""


class Transient(Exception):
    """A dependency cannot serve now and may later: wait, retry, lose nothing."""


class Permanent(Exception):
    """The same request will fail again: a dead letter or a stop, never a retry."""
