"""Everything is in setup.cfg; here is only what it cannot say: schema.sql goes into the package when that is built."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSchema(build_py):
    """The one schema.sql stands at the top of the repository; an installed asrserver finds it in its package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "asrserver"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(__file__).parent / "schema.sql", target / "schema.sql")


setup(cmdclass={"build_py": BuildWithSchema})
