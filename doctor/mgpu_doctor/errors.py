"""The errors that cross the program's edges. Each is shown as one clear line, never as a traceback."""

from __future__ import annotations

from mgpu_doctor.model.source import Location


class MgpuDoctorError(Exception):
    """Something that the user can do something about; ``hint`` says what."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MgpuDoctorError):
    """The program was called in a way that it does not understand."""


class InputError(MgpuDoctorError):
    """A file or text that cannot be read; ``location`` is the place in it, when there is one."""

    def __init__(self, message: str, *, location: Location | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.location = location
