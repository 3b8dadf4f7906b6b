"""Errors whose message is fit for a user.

Raise a leaf with one sentence: what was expected, what was found, what to do. Anything that is not a
StudioError is a bug in our code and is shown to users as such, without its details.
"""


class StudioError(Exception):
    """Base of all errors that a user may read. `code` and `status` are what HTTP shows."""

    code = "error"
    status = 400


class BadInput(StudioError):
    """What the user sent cannot be used."""

    code = "bad_input"
    status = 422


class NotFound(StudioError):
    """The thing named does not exist, or is not the caller's."""

    code = "not_found"
    status = 404


class Conflict(StudioError):
    """The thing exists but its state does not allow this now."""

    code = "conflict"
    status = 409


class Forbidden(StudioError):
    """The caller's role does not allow this."""

    code = "forbidden"
    status = 403


class Busy(StudioError):
    """A limit is reached; trying again later may work."""

    code = "busy"
    status = 429


class EngineUnavailable(StudioError):
    """The model is loading, restarting or gone."""

    code = "engine_unavailable"
    status = 503


class StorageError(StudioError):
    """The disk or the database refused a write; nothing was saved."""

    code = "storage"
    status = 507


class ModelError(StudioError):
    """A model folder, tokenizer or adapter cannot be used."""

    code = "model"
    status = 422


class SettingsError(StudioError):
    """The settings contradict each other or the machine."""

    code = "settings"
