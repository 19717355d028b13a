"""Metadata lives in pyproject.toml; here, setuptools is told of the C core. Without a compiler, all else installs."""

from setuptools import setup

setup(cffi_modules=["qwq_ref/core/build.py:ffi"])
