"""What only machines of others have: containers, many cores, several GPUs; and what the engine keeps from one use to the next."""
from pathlib import Path

import pytest

from isd_nb.kernels.devices import limit_of_container

GIB = 1 << 30


@pytest.mark.parametrize(
    ("stat", "free"),
    [
        (f"anon {4 * GIB}\nfile {28 * GIB}\ninactive_file {25 * GIB}\nactive_file {3 * GIB}\n", 28 * GIB),
        (f"anon {32 * GIB}\ninactive_file 0\nactive_file 0\n", 0),
        ("inactive_file", 0),  # not as Linux writes it
        (None, 0),
    ],
)
def test_files_in_memory_do_not_fill_a_container(tmp_path: Path, stat: str | None, free: int) -> None:
    for name in ("memory.max", "memory.current"):
        (tmp_path / name).write_text(f"{32 * GIB}\n")
    if stat is not None:
        (tmp_path / "memory.stat").write_text(stat)
    assert limit_of_container(tmp_path) == free
    (tmp_path / "memory.max").write_text("max\n")
    assert limit_of_container(tmp_path) == 1 << 62
