"""A picture of a board: `python docs/picture.py BOARD/leaderboard.html docs/board.png [HEIGHT]`.

The top of the page as Chromium shows it, 1280 pixels wide, light, in 64 colours: enough
for text and lines, and below 200 kB.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT, COLOURS, MOST = 1280, 1120, 64, 200_000
QUIET = [  # nothing is fetched
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--no-first-run"),
]


def picture(page: Path, out: Path, height: int = HEIGHT) -> None:
    found = [path for name in ("chromium", "google-chrome") if (path := shutil.which(name))]
    if not found:
        sys.exit("no chromium on the path; install it")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            *(found[0], "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *QUIET),
            *("--blink-settings=preferredColorScheme=1", f"--window-size={WIDTH},{height}"),
            *(f"--user-data-dir={folder}/profile", f"--screenshot={shot}", page.resolve().as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
                out, optimize=True
            )
    if out.stat().st_size > MOST:
        sys.exit(f"{out} has {out.stat().st_size:,} bytes, must be at most {MOST:,}; lower HEIGHT")


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
