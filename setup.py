"""Build and install mbt_fast. Metadata is in pyproject.toml; here is only what must be computed.

MBT_FAST_NATIVE  auto (default): build csrc/ into mbt_fast._C where a C++17 compiler is found and
                 works (g++ 11, clang++ 12 or newer); else install without it, and say why
                 1: build it or fail       0: never build it
MBT_FAST_CUDA    auto (default): build csrc/cuda/ into mbt_fast._cuda where nvcc is found and works,
                 with or without a GPU; else install without it, and say why
                 1: build it or fail       0: never build it
MBT_FAST_ARCHS   architectures beside sm_90a, such as "sm_100a"; no kernel is made for them yet
CUDA_HOME        where nvcc is looked for, before the PATH
CXX              the compiler; default c++, g++ or clang++, the first on the PATH
CXXFLAGS         more options for it, after ours
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOTS = {"mbt_fast": "mbt_fast", "mbt_fast.kernels": "kernels"}
AVX2 = "-mavx2 -mfma -mf16c -ffp-contract=off"  # kernels say where they want a multiply-add
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl"
SIMD_FLAGS = {  # csrc/cpu/simd/<instruction set>.cpp
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": f"{AVX512} -mavx512bf16",
    "amx": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
    "amx_emulated": f"{AVX512} -mavx512bf16",
}
CUDA_FOLDER = Path("csrc/cuda")
CUDA_INSTANCES = [(element, dim) for element in ("Bfloat16", "Float16") for dim in (64, 128)]
CUDA_FLAGS = "-O3 -std=c++17 -lineinfo -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden,-Wno-psabi"
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fopenmp -Wall -Wextra -Werror=return-type"
GCC_FLAGS = "-Wno-maybe-uninitialized"  # false alarms inside GCC 12's own headers of intrinsics
OPENMP = "install OpenMP for clang (libomp-dev or libomp-devel), or set CXX=g++"
HINTS = {  # part of a compiler's message: what to do about it
    "Python.h": "install Python's headers (python3-dev or python3-devel)",
    "omp.h": OPENMP,
    "-lomp": OPENMP,
}


def native_sources() -> dict[str, str]:
    """Sources of ``mbt_fast._C``, and the flags that each needs beside the common ones."""
    found = dict.fromkeys(
        ["csrc/bindings.cpp", *map(str, sorted(Path("csrc/cpu").glob("*.cpp")))], ""
    )
    if platform.machine().lower() in ("x86_64", "amd64"):
        for path in sorted(Path("csrc/cpu/simd").glob("*.cpp")):
            found[str(path)] = SIMD_FLAGS[path.stem]
    return found


def compiler() -> str | None:
    """The C++ compiler's command, if there is one."""
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    return next((c for c in candidates if shutil.which(shlex.split(c)[0])), None)


def flags() -> str:
    """Options for the C++ compiler; clang does not know all of GCC's warnings."""
    command = [*shlex.split(compiler()), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return FLAGS if "clang" in said else f"{FLAGS} {GCC_FLAGS}"


def why_not_native() -> str | None:
    """The first reason against building csrc/, or None."""
    if os.environ.get("MBT_FAST_NATIVE", "auto") == "0":
        return "MBT_FAST_NATIVE=0"
    return why_not_compile()


def why_not_compile() -> str | None:
    """The first reason against building any extension, or None."""
    if os.name != "posix":
        return f"the build knows POSIX compilers only, and this is {sys.platform}"
    if compiler() is None:
        return "no C++ compiler is found; install g++ or clang++, or set CXX"
    try:
        import ninja  # noqa: F401
        import pybind11  # noqa: F401
    except ImportError as error:
        return f"the build needs the Python package {error.name!r}"
    return None


def nvcc() -> str | None:
    """CUDA's compiler, if there is one."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)


def why_not_cuda() -> str | None:
    """The first reason against building csrc/cuda/, or None."""
    if os.environ.get("MBT_FAST_CUDA", "auto") == "0":
        return "MBT_FAST_CUDA=0"
    if nvcc() is None:
        return "nvcc is not found; install the CUDA toolkit, or set CUDA_HOME"
    return why_not_compile()


def architectures() -> list[str]:
    """What the kernels are compiled for."""
    return ["sm_90a", *os.environ.get("MBT_FAST_ARCHS", "").split()]


def cuda_sources() -> list[Path]:
    """Sources of the kernels; one named *_fwd.cu or *_bwd.cu is compiled for each instance."""
    return sorted(CUDA_FOLDER.rglob("*.cu"))


def cuda_source_hash() -> str:
    """SHA-256 of what the kernels are made of: it identifies them in records of GPU runs."""
    digest = hashlib.sha256()
    for path in sorted(CUDA_FOLDER.rglob("*")):
        name = path.relative_to(CUDA_FOLDER)
        if path.suffix in (".cu", ".cuh", ".hpp") and name.parts[0] != "emulated":
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def first_error(output: str) -> str:
    """The line of a compiler's output that names the error, with a hint where one is known."""
    lines = output.splitlines() or ["it says nothing"]
    for part, hint in HINTS.items():
        line = next((line for line in lines if part in line and "cannot find" in line), None)
        line = line or next((line for line in lines if part in line and "error" in line), None)
        if line:
            return f"{line.strip()}; {hint}"
    return next((line for line in lines if "error:" in line.lower()), lines[-1]).strip()


LEFT_OUT: dict[str, str] = {}  # extension: why it is not built


def note(folder: Path, name: str, reason: str | None) -> None:
    """Leave in the package why an extension is not in it: ``mbt_fast.ops.extension`` reads it."""
    path = folder / f"{name.rpartition('.')[2]}.not-built"
    if reason is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(reason)


class BuildPackage(build_py):
    """Copy the package, with notes of what is left out."""

    def run(self) -> None:
        """In an editable install the notes stand beside the sources."""
        super().run()
        folder = Path("mbt_fast") if self.editable_mode else Path(self.build_lib) / "mbt_fast"
        for name in WRITE_NINJA:
            note(folder, name, LEFT_OUT.get(name))


class NinjaBuild(build_ext):
    """Compile and link the extension by ninja: parallel, and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Write build.ninja beside the objects and run it; setuptools forgives an optional one."""
        import ninja

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / ext.name
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(folder / "build.ninja", "w") as file:
            WRITE_NINJA[ext.name](ninja.ninja_syntax.Writer(file), target)
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", folder]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        print(done.stdout, flush=True)
        if done.returncode:
            reason = f"{COMPILERS[ext.name]()} failed: {first_error(done.stdout)}"
            if ext.optional:
                print(f"mbt_fast: building without {ext.name}: {reason}", flush=True)
                note(target.parent, ext.name, reason)
            raise CompileError(reason)


def write_compile_rule(out) -> None:
    """The rule for C++."""
    import pybind11

    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    out.variable("cxx", compiler())
    out.variable("flags", f"{flags()} {' '.join(f'-isystem {path}' for path in includes)}")
    out.variable("more", os.environ.get("CXXFLAGS", ""))
    compile_one = "$cxx -MMD -MF $out.d $flags $extra $more -c $in -o $out"
    out.rule("compile", compile_one, depfile="$out.d", deps="gcc")


def object_name(source: str | Path, *instance: object) -> str:
    """An object's name, beside build.ninja."""
    return "_".join([*Path(source).with_suffix("").parts, *map(str, instance)]) + ".o"


def write_native(out, target: Path) -> None:
    """One rule to compile, one to link."""
    write_compile_rule(out)
    undefined = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
    out.rule("link", f"$cxx -shared -fopenmp $more {undefined} $in -o $out")
    objects = []
    for source, extra in native_sources().items():
        path = str(Path(source).resolve())
        objects += out.build(object_name(source), "compile", path, variables={"extra": extra})
    out.build(str(target), "link", objects)


def write_cuda(out, target: Path) -> None:
    """Kernels by nvcc, ptxas's report of them into a header, the module around them by C++."""
    write_compile_rule(out)
    codes = [
        f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in architectures()
    ]
    out.variable("nvcc", nvcc())
    compile_one = f"$nvcc -MMD -MF $out.d {CUDA_FLAGS} {' '.join(codes)} $macros -c $in -o $out"
    show = "{ cat $out.log; exit 1; }"
    command = f"{compile_one} > $out.log 2>&1 || {show}"
    out.rule("kernel", command, depfile="$out.d", deps="gcc")
    report = (CUDA_FOLDER / "ptxas_report.py").resolve()
    out.rule("report", f"{sys.executable} {report} $out $logs")
    out.rule("link", "$nvcc -shared -cudart static $in -o $out")
    objects = []
    for source in cuda_sources():
        for instance in CUDA_INSTANCES if source.stem.endswith(("_fwd", "_bwd")) else [()]:
            defined = zip(("ELEMENT", "DIM"), instance, strict=False)
            macros = " ".join(f"-DMBT_FAST_{name}={value}" for name, value in defined)
            name, path = object_name(source, *instance), str(source.resolve())
            objects += out.build(name, "kernel", path, variables={"macros": macros})
    logs = " ".join(f"{name}.log" for name in objects)
    (header,) = out.build("build_info.hpp", "report", objects, variables={"logs": logs})
    version = subprocess.run(
        [str(nvcc()), "--version"], capture_output=True, text=True, check=False
    )
    release = next((line for line in version.stdout.splitlines() if "release" in line), "unknown")
    macros = {
        "NVCC": release,
        "ARCHITECTURES": " ".join(architectures()),
        "SOURCES": cuda_source_hash(),
    }
    extra = " ".join(f"'-DMBT_FAST_{name}=\"{value}\"'" for name, value in macros.items())
    bindings = str((CUDA_FOLDER / "bindings.cpp").resolve())
    objects += out.build(
        "bindings.o", "compile", bindings, implicit=header, variables={"extra": f"-I. {extra}"}
    )
    out.build(str(target), "link", objects)


WRITE_NINJA = {"mbt_fast._C": write_native, "mbt_fast._cuda": write_cuda}
COMPILERS = {"mbt_fast._C": compiler, "mbt_fast._cuda": nvcc}


def extensions() -> dict:
    """Arguments of ``setup`` for the extensions; for one that is left out, a sentence says why."""
    modules = []
    for name, switch, why_not, sources in (
        ("mbt_fast._C", "MBT_FAST_NATIVE", why_not_native, list(native_sources())),
        ("mbt_fast._cuda", "MBT_FAST_CUDA", why_not_cuda, list(map(str, cuda_sources()))),
    ):
        reason, is_demanded = why_not(), os.environ.get(switch) == "1"
        if reason is None:
            modules.append(Extension(name, sources, language="c++", optional=not is_demanded))
        elif is_demanded:
            raise SystemExit(f"{switch}=1, but {reason}")
        else:
            print(f"mbt_fast: building without {name}: {reason}")
            LEFT_OUT[name] = reason
    commands = {"build_py": BuildPackage, "build_ext": NinjaBuild}
    return {"ext_modules": modules, "cmdclass": commands}


if __name__ == "__main__":  # benchmarks/gpu_suite.py takes functions from here
    setup(
        package_dir=ROOTS,
        packages=[
            f"{name}.{sub}" if sub else name
            for name, folder in ROOTS.items()
            for sub in ("", *find_packages(folder))
        ],
        **extensions(),
    )
