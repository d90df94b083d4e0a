"""What tests compile is kept with pytest's own cache, not in the home folder."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    cache = getattr(request.config, "cache", None)  # it may be switched off
    folder = cache.mkdir("kernels") if cache else tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield
