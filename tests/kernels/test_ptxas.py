from __future__ import annotations

from eqconv_cli.events import KernelUse
from eqconv_cli.kernels import ptxas

RECORDED = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3eqc34_GLOBAL__N__531d78dc_4_k_cu_eqc_go7forwardIfLi64ELb1EEEvPKT_PS2_i' \
for 'sm_80'
ptxas info    : Function properties for _ZN3eqc34_GLOBAL__N__531d78dc_4_k_cu_eqc_go7forwardIfLi64ELb1EEEvPKT_PS2_i
    664 bytes stack frame, 892 bytes spill stores, 948 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 664 bytes cumulative stack size, 256 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 38.420 ms
ptxas info    : Compiling entry function '_ZN3eqc34_GLOBAL__N__531d78dc_4_k_cu_eqc_go5plainEPf' for 'sm_120'
ptxas info    : Function properties for _ZN3eqc34_GLOBAL__N__531d78dc_4_k_cu_eqc_go5plainEPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Compile time = 1.243 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3eqc34_GLOBAL__N__531d78dc_4_k_cu_eqc_go5plainEPf' for 'sm_90'
ptxas info    : Function properties for _Z6calledf
    16 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for _ZN3eqc34_GLOBAL__N__531d78dc_4_k_cu_eqc_go5plainEPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 1024+16 bytes smem
"""


def test_what_nvcc_said() -> None:
    assert ptxas.parse(RECORDED) == (
        KernelUse("forward<float, 64, true>", "sm_80", 32, 256, 664, 892, 948),
        KernelUse("plain", "sm_90", 10, 1040, 0, 0, 0),
        KernelUse("plain", "sm_120", 8, 0, 0, 0, 0),
    )


def test_other_output_has_no_kernels() -> None:
    assert ptxas.parse("") == ()
    assert ptxas.parse("ptxas info    : Used 8 registers\nwarning: x\n") == ()


def test_readable_names() -> None:
    symbols = ["_Z4copyPf", "main", "_ZN3eqc4castISt6vectorIiSaIiEEEEvT_"]
    assert ptxas.readable(symbols) == ["copy", "main", "cast<std::vector<int, std::allocator<int> > >"]
