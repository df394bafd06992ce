"""Puts the folder conf/ into the package as mmrlhf/conf; everything else that is installed stands in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

CONF = Path("conf")
folders = [CONF, *sorted(folder for folder in CONF.rglob("*") if folder.is_dir())]
inside = {".".join(("mmrlhf", *folder.parts)): folder.as_posix() for folder in folders}

setup(packages=[*find_packages(include=["mmrlhf*"]), *inside], package_dir=inside)
