"""Metadata lives in pyproject.toml. This file is where cffi is told of the C core, once there is one to build."""

from setuptools import setup

setup()
