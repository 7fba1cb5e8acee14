"""Memory of a distillation against the number of classes: a set is made, distilled, measured, and deleted.

    python benchmarks/large_set.py --classes 20 100 --images 500
    python benchmarks/large_set.py --classes 500 --images 500 --limit-gb 2     # 3 GB of pixels inside 2 GiB
    python benchmarks/large_set.py --classes 20 100 --tree ../before           # of another checkout

A row a number of classes: the peaks of the driver's own memory (RssAnon), of what it wrote into Ray's object store
(RssShmem), and of both summed over the driver, Ray and the workers, sampled ten times a second from /proc; Linux only.
The limit is a memory cgroup, which this user must be allowed to make; what is mapped from files counts there as well.
"""

# N images, C channels, H height, W width

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CGROUPS = Path("/sys/fs/cgroup")
SAMPLE_S = 0.1
TEST_IMAGES = 2
"""Of each class."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--images", type=int, default=500, help="of each class")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shuffled", action="store_true", help="classes mixed in the files")
    parser.add_argument("--limit-gb", type=float, help="memory of the whole run, GiB")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose command is measured")
    parser.add_argument("--scratch", type=Path, help="where the set is made; default: a temporary folder")
    asked = parser.parse_args()
    for num_classes in asked.classes:
        with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
            place = Path(folder)
            make_set(place / "set", num_classes, asked.images, asked.side, shuffled=asked.shuffled)
            peaks = measured(place, num_actors=asked.workers, tree=asked.tree, limit_gb=asked.limit_gb)
            set_mib = round(num_classes * asked.images * 3 * asked.side**2 / 2**20)
            print(json.dumps({"classes": num_classes, "set_mib": set_mib, **peaks}), flush=True)


def make_set(folder: Path, num_classes: int, num_images: int, side: int, *, shuffled: bool) -> None:
    """Noise around a colour of the class, as PNG in the Hub's parquet layout, a row group a hundred images."""
    folder.mkdir(parents=True)
    kind = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("label", pa.int64())])
    for part, count in (("train", num_images), ("test", TEST_IMAGES)):
        generator = np.random.default_rng(0)
        labels_N = np.repeat(np.arange(num_classes), count)
        if shuffled:
            generator.shuffle(labels_N)
        with pq.ParquetWriter(folder / f"{part}-00000-of-00001.parquet", kind) as writer:
            for begin in range(0, len(labels_N), 100):
                rows = labels_N[begin : begin + 100].tolist()
                images = [{"bytes": _png(label, side, generator)} for label in rows]
                writer.write_table(pa.table({"image": images, "label": rows}, schema=kind))


def _png(label: int, side: int, generator: np.random.Generator) -> bytes:
    colour = np.random.default_rng(label).integers(0, 192, 3)
    pixels_HWC = (colour + generator.integers(0, 64, (side, side, 3))).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stored, "PNG", compress_level=0)
    return stored.getvalue()


def measured(
    place: Path, *, num_actors: int, tree: Path = ROOT, limit_gb: float | None = None
) -> dict[str, int]:
    """Peaks in MiB and seconds of one run of the command, on the set that was made in `place / "set"`."""
    command = [sys.executable, str(tree / "pipelines" / "distill.py")]
    command += ["--dataset", f"parquet:{place / 'set'}", "--data-dir", str(place / "data")]
    command += ["--output", str(place / "out"), "--num-actors", str(num_actors)]
    command += ["--iterations", "2", "--checkpoint-every", "2", "--network", "convnet-w32"]
    command += ["--batch-real", "16", "--lr-img", "0.01", "--eval-seeds", "0", "--compile", "off"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    began_s = time.monotonic()
    with (place / "log.txt").open("w") as log, limited(limit_gb) as joined:
        command = [*joined, *command]
        running = subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log)
        peaks = dict.fromkeys(("driver", "driver_shared", "all"), 0)
        while running.poll() is None:
            for name, size in memory_of(psutil.Process(running.pid)).items():
                peaks[name] = max(peaks[name], size)
            time.sleep(SAMPLE_S)
    if running.returncode:
        print((place / "log.txt").read_text()[-2000:], file=sys.stderr)
    return {
        **{f"{name}_mib": round(size / 2**20) for name, size in peaks.items()},
        "seconds": round(time.monotonic() - began_s),
        "exit": running.returncode,
    }


@contextmanager
def limited(limit_gb: float | None) -> Iterator[list[str]]:
    """Words before a command that put it, and all that it starts, under a limit."""
    if limit_gb is None:
        yield []
        return
    version_1 = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if version_1 else CGROUPS) / f"large-set-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / ("memory.limit_in_bytes" if version_1 else "memory.max")
        limit.write_text(str(int(limit_gb * 2**30)))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        # Ray's last processes end a moment after the command.
        for _ in range(100):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(SAMPLE_S)


def memory_of(driver: psutil.Process) -> dict[str, int]:
    """Bytes held now: by the driver, in shared memory by the driver, and by it and all its children."""
    try:
        family = [driver, *driver.children(recursive=True)]
    except psutil.Error:
        return {}
    own = [_resident(process.pid) for process in family]
    # What is shared is counted once, at whoever has touched most of it.
    return {
        "driver": own[0][0],
        "driver_shared": own[0][1],
        "all": sum(anonymous for anonymous, _ in own) + max(shared for _, shared in own),
    }


def _resident(pid: int) -> tuple[int, int]:
    """Bytes of a process: anonymous, and shared memory that it touched."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = dict(line.split(":", 1) for line in lines)
    return tuple(int(found.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


if __name__ == "__main__":
    main()
