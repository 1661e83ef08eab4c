"""Reads everything about the package from settings.ini."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def linked(text):
    "Markdown whose links and images lead to the repository, for a package index has none of its files."
    def absolute(link):  # GitHub has pages below blob/ and files, such as images, below raw/
        image, words, path = link.groups()
        return f"{image}{words}({settings['git_url']}/{'raw' if image else 'blob'}/{settings['branch']}/{path})"
    return re.sub(r"(!?)(\[[^][]*\])\((?!\w+:|#)([^)\s]+)\)", absolute, text)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=linked((here / "README.md").read_text(encoding="utf-8")) if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    packages=find_packages(include=["isd_nb", "isd_nb.*"]),
    include_package_data=True,
    package_data={"isd_nb": ["explore/static/*", "shipped/*", "py.typed"]},  # the explorer's page; edited by hand, nbdev exports Python only
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split() for name in ("explore", "timm", "parquet", "hub", "dicom", "onnx", "lightning", "bench", "book", "dev")},
    entry_points={"console_scripts": settings["console_scripts"].split(),
                  "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"]},
)
