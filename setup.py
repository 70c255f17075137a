"""The settings are in setup.cfg; this adds what it cannot express: the build copies schema.sql into the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSchema(build_py):
    """Builds the package with a copy of schema.sql, which lies at the top of the repository."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "asrserver"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(__file__).parent / "schema.sql", target / "schema.sql")


setup(cmdclass={"build_py": BuildWithSchema})
