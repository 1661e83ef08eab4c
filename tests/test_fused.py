"""The fused loss compiles for GPUs, which Triton can do without one; its values are tested in its notebook."""
import warnings

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA builds for Linux")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile as compile_kernel

from isd_nb.kernels.triton_attention import constants, read_kernel, tile_for


@pytest.mark.parametrize(("capability", "name", "memory", "features"), [
    (80, "A100", 163 << 10, 128), (90, "H100", 227 << 10, 128), (89, "RTX 4090", 99 << 10, 256)])
def test_the_kernel_compiles_and_fits(capability: int, name: str, memory: int, features: int) -> None:
    numbers = dict.fromkeys(("B", "K", "D", "chunk"), "i32")
    pointers = dict.fromkeys(("scaled", "anchors", "peaks", "masses", "means"), "*fp32")
    tile = tile_for(features, memory)
    fixed = constants(tile, features=features)
    source = ASTSource(read_kernel, pointers | numbers | dict.fromkeys(fixed, "constexpr"), fixed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = compile_kernel(source, target=GPUTarget("cuda", capability, 32),
                                options=dict(num_warps=tile.warps, num_stages=1))
    assert kernel.asm["cubin"]
    assert kernel.metadata.shared <= memory, f"more shared memory than an {name} has"
    assert "mma" in kernel.asm["ptx"], "the matrix units are not used"
