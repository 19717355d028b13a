from tests.support.checkpoints import random_folder, scripted  # noqa: F401
