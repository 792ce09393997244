"""The errors and warnings that this package defines.

All errors derive from `VideoXLError`, so that a caller can catch one class; those for a wrong argument are also
`ValueError`s. A message names the value, the limit and what to do about it.
"""


class VideoXLError(Exception):
    """Base class; the command line turns it into one line and exit status 2."""


class ConfigError(VideoXLError, ValueError):
    """A configuration asks for something that this package does not support."""


class CheckpointError(VideoXLError):
    """A checkpoint folder cannot be loaded as it is."""


class PlanError(VideoXLError, ValueError):
    """No window plan exists for the given ratio and window size."""


class PromptError(VideoXLError, ValueError):
    """Prompt, placeholders and visual inputs do not match."""


class BatchError(VideoXLError, ValueError):
    """Rows of a batch differ where they must not (docs/explanation/compressor.md says where)."""


class VideoError(VideoXLError):
    """A video cannot be opened or decoded."""


class SubtitleError(VideoError):
    """Subtitles cannot be read, or there are none."""


class VideoTimeoutError(VideoError, TimeoutError):
    """Decoding made no progress within the time limit; the decoder process was killed."""


class PictureError(VideoXLError, ValueError):
    """A picture cannot be opened, or is too large."""


class MemoryLimitError(VideoXLError):
    """A video would not fit on the GPU; raised before it is read."""


class MemoryFileError(VideoXLError):
    """A video memory cannot be saved, read, or used with this model."""


class MissingDependencyError(VideoXLError, ImportError):
    """The request needs an optional package that is not installed."""


class NonFiniteError(VideoXLError, ArithmeticError):
    """The decoder produced infinities or NaN; the message names the layer."""


class VideoWarning(UserWarning):
    """A video can be used, but not everything requested is available."""


class UnsummarisedTokensWarning(UserWarning):
    """Some visual tokens of a span have no beacon after them, so the cache holds nothing about them."""


class ArgumentError(VideoXLError, ValueError):
    """A command line asks for something that cannot work."""


class DataError(VideoXLError, ValueError):
    """Input data is malformed, or too many training samples cannot be read."""


def one_line(error: BaseException, most: int = 300) -> str:
    """What a foreign error says, on one line of at most `most` letters; its type where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__
