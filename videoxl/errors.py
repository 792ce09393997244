"""Every error this package raises on purpose.

All derive from `VideoXLError`, so that a caller can catch one class; those that stand for a wrong argument are
`ValueError`s too. A message names the value, the limit and what to do about it.
"""


class VideoXLError(Exception):
    """Base class; the command line turns it into one line and exit status 2."""


class ConfigError(VideoXLError, ValueError):
    """A configuration asks for something that this system does not do."""


class CheckpointError(VideoXLError):
    """A checkpoint folder cannot be loaded as it is."""


class PlanError(VideoXLError, ValueError):
    """The window plan cannot be made: a ratio or a window size that does not work."""


class PromptError(VideoXLError, ValueError):
    """Prompt, placeholders and visual inputs do not fit together."""


class BatchError(VideoXLError, ValueError):
    """Rows of a batch differ where they must not (docs/explanation/compressor.md says where)."""


class VideoError(VideoXLError):
    """A video cannot be opened or decoded."""


class VideoTimeoutError(VideoError, TimeoutError):
    """Decoding made no progress within the time limit; the decoder process was killed."""


class PictureError(VideoXLError, ValueError):
    """A picture cannot be opened, or is too large."""


class MemoryLimitError(VideoXLError):
    """A video would not fit on the GPU; raised before it is read."""


class MemoryFileError(VideoXLError):
    """A video memory cannot be saved, read, or used with this model."""


class MissingDependencyError(VideoXLError, ImportError):
    """An optional package is needed for what was asked."""


class NonFiniteError(VideoXLError, ArithmeticError):
    """The decoder produced infinities or NaN; the message names the layer."""


class VideoWarning(UserWarning):
    """A video can be used, but not all that was asked for."""


class UnsummarisedTokensWarning(UserWarning):
    """Some visual tokens of a visual span were not followed by a beacon and left nothing in the cache."""


class ArgumentError(VideoXLError, ValueError):
    """A command line asks for something that cannot work."""


class DataError(VideoXLError, ValueError):
    """Training records are not what they must be, or too many of them cannot be read."""
