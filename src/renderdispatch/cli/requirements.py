"""Are the installed packages as new as this library needs them?

Installers take care of that, unless they are told not to or another package forces an older version.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version


def outdated() -> list[str]:
    """Return one text for each installed package of a wrong version, such as ``av>=15 (14.0.0 is installed)``.

    A package that is not installed is not missed: its extra may not be wanted.
    """
    try:
        from packaging.requirements import Requirement

        texts = requires("renderdispatch") or []
    except (ImportError, PackageNotFoundError):
        return []
    wrong = {}
    for needed in map(Requirement, texts):
        if needed.marker is not None and not needed.marker.evaluate({"extra": "all"}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            continue
        if not needed.specifier.contains(found, prereleases=True):
            wrong[needed.name] = f"{needed.name}{needed.specifier} ({found} is installed)"
    return sorted(wrong.values())
