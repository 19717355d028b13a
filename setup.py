"""Build the C core, and tag wheels for the stable ABI. All other metadata is in pyproject.toml.

Without a C compiler, the build leaves the core out and succeeds.
"""

from setuptools import setup

setup(
    cffi_modules=["qwq_ref/core/build.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for Python 3.11 and later
)
