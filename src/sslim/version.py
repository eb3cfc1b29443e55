"""Which sslim this is, and the versions of what it computes with."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

LIBRARIES = ("torch", "transformers", "accelerate", "soundfile", "soxr")
"""What decides a result besides sslim; their versions are read from their metadata, not by importing them."""


def versions() -> dict[str, str]:
    """Versions of what decides the result; `commit` where sslim runs from a git checkout."""
    # `import sslim` imports this module, and these would double the time that takes.
    import platform
    from importlib import metadata

    commit = _commit(Path(__file__).parent)
    return {
        "sslim": __version__,
        **({"commit": commit} if commit else {}),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def _commit(folder: Path) -> str:
    """The commit that `folder` is a checkout of, `+` where files differ from it; empty without git."""
    import subprocess

    try:
        # Only a repository of this program itself: an installed copy may lie inside somebody else's.
        if not (folder.parents[1] / ".git").exists():
            return ""
        answer = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
