"""The CUDA toolkit of the server: the machine's, or one assembled from the packages of the server's own environment.

FlashInfer compiles some of its kernels on first use, and a machine with nothing but a driver has no nvcc. The CUDA 13 set
has nvcc, headers and libraries, but not in the layout of a toolkit: the libraries are in lib, not lib64, and without the
unversioned names that a linker looks for. The CUDA 12 set has no nvcc: NVIDIA's package of that name holds only ptxas for
CUDA 12. Its server keeps off what FlashInfer would compile (pipeline/vllm/releases.py).
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

MACHINE = Path("/usr/local/cuda")  # where FlashInfer and torch look by default
# The set's nvcc is 13.5 and its headers are 13.0. CUDA's C++ library refuses such a pair without this flag; with
# it, FlashInfer's sampling kernels build (benchmarks/README.md).
PAIRED = "-DCCCL_DISABLE_CTK_COMPATIBILITY_CHECK"


def toolkit_environment(inherited: Mapping[str, str], python: Path, cache: Path) -> dict[str, str]:
    """Return the variables that point at the environment's own toolkit; none where the machine has one or the environment lacks one."""
    packages = own_packages(python)
    if packages is None or has_toolkit(inherited):
        return {}
    flags = " ".join(filter(None, (inherited.get("NVCC_APPEND_FLAGS"), PAIRED)))
    return {"CUDA_HOME": str(arranged(packages, cache / "cuda-toolkit")), "NVCC_APPEND_FLAGS": flags}


def has_toolkit(inherited: Mapping[str, str]) -> bool:
    """Tell whether nvcc is found where FlashInfer looks for it."""
    toolkit = inherited.get("CUDA_HOME") or inherited.get("CUDA_PATH")
    if toolkit:
        return (Path(toolkit) / "bin" / "nvcc").is_file()
    return shutil.which("nvcc", path=inherited.get("PATH", "")) is not None or (MACHINE / "bin" / "nvcc").is_file()


def own_packages(python: Path) -> Path | None:
    """Return the folder of the environment's CUDA packages; None where they have no nvcc."""
    compilers = sorted(python.parent.parent.glob("lib/python3.*/site-packages/nvidia/cu*/bin/nvcc"))
    return compilers[-1].parent.parent if compilers else None


def arranged(packages: Path, folder: Path) -> Path:
    """Lay `packages` out as a toolkit by links in `folder`, and return `folder`; links that are right already are kept."""
    libraries = {path.name: path for path in (packages / "lib").iterdir()} if (packages / "lib").is_dir() else {}
    unversioned = {f"{name.partition('.so.')[0]}.so": path for name, path in libraries.items() if ".so." in name}
    links = {folder / name: packages / name for name in ("bin", "include", "nvvm")}
    links |= {folder / "lib64" / name: path for name, path in (unversioned | libraries).items()}
    links[folder / "lib"] = folder / "lib64"
    for link, target in links.items():
        if link.is_symlink() and link.readlink() == target:
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return folder
