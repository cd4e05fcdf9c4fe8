import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from emulated import toolkit  # noqa: E402

toolkit.put_nvcc_on_path()
