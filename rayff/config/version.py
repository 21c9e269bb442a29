"""The version of the package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("rayff")
except PackageNotFoundError:  # a source tree that was not installed
    VERSION = "unknown"
