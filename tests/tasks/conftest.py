from tests.support.ways import way  # noqa: F401
