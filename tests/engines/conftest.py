from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.engines import containerd, docker, podman, stub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.engines.engine import Engine
    from tests.engines.stub import Stub

ENGINES: Final[dict[str, Callable[[Path, Path, float], AbstractContextManager[Engine]]]] = {
    "docker": docker.running,
    "podman": podman.running,
    "containerd": containerd.running,
}
#: Time limit of the wrapper's requests. On a loaded machine, the stub may need some of it.
SECONDS = 3.0


@pytest.fixture(scope="module", params=ENGINES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """Run each engine, with a wrapper that asks the socket `service.sock` in the site's parent."""
    folder = tmp_path_factory.mktemp("engine")
    with ENGINES[request.param](folder / "site", folder / "service.sock", SECONDS) as engine:
        yield engine


@pytest.fixture
def service(running: Engine) -> Iterator[Stub]:
    """Serve as the service of the engine's wrapper."""
    with stub.serving(running.site.folder.parent / "service.sock") as serving:
        yield serving
