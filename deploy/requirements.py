"""Print what pyproject.toml asks for, so that an image can install it in a layer of its own, before the code.

python requirements.py          the core
python requirements.py EXTRA    one extra alone
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
wanted = project["optional-dependencies"][sys.argv[1]] if len(sys.argv) > 1 else project["dependencies"]
print("\n".join(wanted))
