"""Build the package from the metadata in settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read("settings.ini", encoding="utf-8")
meta = settings["DEFAULT"]

setup(
    name=meta["name"],
    version=meta["version"],
    description=meta["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=meta["author"],
    project_urls={"Repository": meta["repository"]},
    keywords=meta["keywords"].split(),
    license=meta["license"],
    python_requires=f">={meta['min_python']}",
    # The committed data travels inside the package, so an installed copy finds it too.
    packages=[*find_packages(include=["daedalus", "daedalus.*"]), "daedalus.data"],
    package_dir={"daedalus": "daedalus", "daedalus.data": "data"},
    package_data={"daedalus.data": ["*.json", "*.mplstyle", "results/*.json", "training/*.json", "ablations/*.json", "grpo/*.json",
                                    "designer/*", "first_edition/*", "rivals/*", "search/*", "teacher/*", "arena/*", "pages/*",
                                    "leaderboard/*.*", "leaderboard/replies/*"]},
    install_requires=meta["requirements"].split(),
    extras_require={extra: names.split() for extra, names in settings["extras"].items() if extra not in meta},
    entry_points={"console_scripts": ["daedalus = daedalus.cli:main"],
                  "inspect_ai": ["daedalus = daedalus.serving.harnesses:referee"]},
    zip_safe=False,
)
