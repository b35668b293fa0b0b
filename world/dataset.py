"""`python -m world.dataset`: writes datasets of the world, packed for training or as folders of
files; wiring only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from world.files import read_rows, seeds_with_backs, write_dataset, write_faces
from world.packed import LABELS, open_packed, render_packed
from world.scene import KINDS
from world.seeds import RANGES

__all__ = ["main", "open_packed", "read_rows", "render_packed", "write_dataset", "write_faces"]


def _progress(done: int, count: int, seconds: float) -> None:
    print(f"\r{done}/{count} images, {seconds:.0f} s", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m world.dataset", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packed = commands.add_parser("packed", help="memory-mapped arrays for training")
    folder = commands.add_parser(
        "folder", help="PNG images, PNG labels and JSON lines, as users' own data"
    )
    faces = commands.add_parser(
        "faces", help="tight face crops: people who share hair, hat and glasses"
    )
    for command in (packed, folder, faces):
        command.add_argument("folder")
        command.add_argument("--range", choices=sorted(RANGES), default="train", dest="seed_range")
        command.add_argument("--start", type=int, default=0, help="offset within the range")
        command.add_argument("--count", type=int, default=1000)
        command.add_argument("--size", type=int, default=64, help="pixels")
        command.add_argument("--workers", type=int, default=2)
    for command in (packed, folder):
        command.add_argument(
            "--labels", nargs="*", choices=LABELS, default=[], help="label images to write"
        )
    folder.add_argument("--kind", choices=KINDS, default=None, help="default: a mix of all")
    folder.add_argument(
        "--behind", type=float, default=None, metavar="SHARE",
        help="choose seeds so that people turn their backs in this share (without: a tenth)",
    )  # fmt: skip
    folder.add_argument(
        "--frames", type=int, default=1, help="more than 1: videos with point tracks"
    )
    folder.add_argument(
        "--cuts",
        type=float,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="SHARE",
        help="videos: in this share (all, if not given) every frame has a camera of its own",
    )
    faces.add_argument("--people", type=int, default=2, help="of one look, per seed")
    faces.add_argument("--shots", type=int, default=4, help="pictures a person")
    faces.add_argument(
        "--same-skin",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the looks in which people share their skin tone, too",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    seeds = RANGES[options.seed_range][options.start : options.start + options.count]
    if len(seeds) == 0:
        print("no seeds: --start lies beyond the range or --count is 0", file=sys.stderr)
        return 2
    if options.command == "packed":
        render_packed(
            options.folder,
            seeds,
            options.size,
            labels=options.labels,
            workers=options.workers,
            progress=_progress,
        )
        print(file=sys.stderr)
    elif options.command == "faces":
        write_faces(
            options.folder, seeds, options.size, people=options.people, shots=options.shots,
            same_skin=options.same_skin, workers=options.workers,
        )  # fmt: skip
    else:
        if options.behind is not None:
            after = RANGES[options.seed_range][options.start :]
            seeds = seeds_with_backs(after, options.count, options.behind)
        write_dataset(
            options.folder, seeds, options.size, labels=options.labels, kind=options.kind,
            frames=options.frames, cuts=options.cuts, workers=options.workers,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
