"""Packages of the wheel; pyproject.toml has the rest. Only setup.py can add a folder from outside of the packages."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["swav_platform*", "services*"]), "swav_platform.recipes"],
    package_dir={"swav_platform.recipes": "configs/pretrain"},
    package_data={
        "swav_platform": ["py.typed"],
        "services": ["py.typed"],
        "services.embeddings.explorer": ["page/*", "page/views/*"],
        "swav_platform.recipes": ["*.yaml"],
    },
    include_package_data=False,
)
